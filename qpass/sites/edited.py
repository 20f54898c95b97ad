"""A parameter as the user's tensor and the exact steps it went through, computed when it is asked for.

Steps compute in float64 and the result is rounded once to the parameter's own dtype, however many edits there were:
in float32 every edit of a bfloat16 or float32 weight would round, and a chain of methods would lose what each kept.
Tensors are worked on in slices along their first dimension, so that float64 costs 32 MiB and not four times a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qpass.errors import NumericsError
from qpass.graph.program import Derived
from qpass.sites.site import Axis, Where

_SLICE = 1 << 22  # elements; 32 MiB of float64


@dataclass(frozen=True)
class Scale:
    """(v + offset) · factor - offset, only inside ``where``.

    Args:
        dims: the dimensions that ``factor`` runs over, ascending.
        factor: float64, of the parameter's sizes along ``dims``.
        where, offset: as in ``Axis``.
    """

    dims: tuple[int, ...]
    factor: Tensor
    where: Where = ()
    offset: float = 0.0

    def on(self, values: Tensor, first: int, sources: Sequence[Tensor]) -> Tensor:
        """The step on float64 ``values``, which are the parameter from row ``first`` on."""
        factor = _broadcast(self.factor, self.dims, values, first)
        scaled = values * factor
        if self.offset:
            scaled = scaled + self.offset * (factor - 1)  # so that a factor of 1 changes no bit
        inside = self._inside(values, first)
        return scaled if inside is None else torch.where(inside, scaled, values)

    def _inside(self, values: Tensor, first: int) -> Tensor | None:
        inside = None
        for dim, indices in self.where:
            mask = torch.zeros(values.shape[dim] if dim else first + values.shape[0], dtype=torch.bool)
            mask[indices[indices < len(mask)].cpu()] = True
            part = _broadcast(mask.to(values.device), (dim,), values, first)
            inside = part if inside is None else inside & part
        return inside


@dataclass(frozen=True)
class Add:
    """v + vector, for a parameter of one dimension. vector: float64, of its size."""

    vector: Tensor

    def on(self, values: Tensor, first: int, sources: Sequence[Tensor]) -> Tensor:
        """The step on float64 ``values``, which are the parameter from row ``first`` on."""
        return values + self.vector.to(values.device)[first : first + values.shape[0]]


@dataclass(frozen=True)
class AddProduct:
    """b + W δ: what a linear's bias takes up when its input is shifted by -δ.

    Args:
        source: which source of the parameter W is.
        steps: what W itself had gone through at that moment.
        delta: float64, along the dimension ``dim`` of W, which meets the input.
        rows: the outputs this is true for; None for all.
    """

    source: int
    steps: tuple[Scale, ...]
    delta: Tensor
    dim: int
    rows: Tensor | None = None

    def on(self, values: Tensor, first: int, sources: Sequence[Tensor]) -> Tensor:
        """The step on the whole bias ``values`` in float64; a bias is one slice."""
        weight = sources[self.source]
        delta = self.delta.to(values.device)
        product = torch.zeros_like(values) if self.dim == 0 else torch.empty_like(values)
        for start, part in computed(weight, self.steps, ()):
            if self.dim == 0:
                product += delta[start : start + part.shape[0]] @ part
            else:
                product[start : start + part.shape[0]] = part @ delta
        if self.rows is not None:
            keep = torch.zeros_like(product)
            rows = self.rows.to(product.device)
            keep[rows] = product[rows]
            product = keep
        return values + product


Step = Scale | Add | AddProduct


def computed(tensor: Tensor, steps: Sequence[Step], sources: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """(first row, float64 values after ``steps``) for each slice of ``tensor``."""
    rows = tensor.shape[0] if tensor.dim() else 1
    whole = any(isinstance(step, AddProduct) for step in steps)
    height = rows if whole or tensor.dim() == 0 else max(1, _SLICE * rows // max(tensor.numel(), 1))
    for first in range(0, rows, max(height, 1)):
        values = (tensor[first : first + height] if tensor.dim() else tensor).to(torch.float64)
        for step in steps:
            values = step.on(values, first, sources)
        yield first, values


@dataclass(frozen=True)
class Edited:
    """What derives an edited parameter: ``(its old value, *weights that steps read) -> tensor``.

    Args:
        name: of the parameter, for errors.
        steps: in order.
    """

    name: str
    steps: tuple[Step, ...]

    def __call__(self, *sources: Tensor) -> Tensor:
        """The parameter in its own dtype. Raises NumericsError where a factor left that dtype's range."""
        result = self.compute(sources, sources[0].dtype)
        ends = torch.aminmax(result) if result.numel() and not result.is_meta else ()
        if not all(bool(torch.isfinite(end)) for end in ends):
            raise NumericsError(f"re-scaling leaves the range of {result.dtype}", where=self.name,
                                fix="load the model in bfloat16 or float32, or leave this parameter out of the method")
        return result

    def compute(self, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The parameter in ``dtype``; in float64 nothing is rounded."""
        if sources[0].is_meta:
            return torch.empty_like(sources[0], dtype=dtype)
        result = torch.empty_like(sources[0], dtype=dtype, memory_format=torch.contiguous_format)
        for first, values in computed(sources[0], self.steps, sources):
            if result.dim():
                result[first : first + values.shape[0]] = values
            else:
                result.copy_(values)
        return result


def edited(name: str, old: Derived | None, base: str, like: Tensor, steps: Sequence[Step],
           sources: Sequence[str]) -> Derived:  # fmt: skip
    """A parameter after more steps: on ``base``, or, where ``old`` is edited already, behind its own steps.

    ``AddProduct.source`` counts in ``sources``; the result's sources are the base, the old ones, and these.
    """
    shape = torch.empty(like.shape, dtype=like.dtype, device="meta")
    before = old.sources if old is not None else (base,)
    earlier = old.fn.steps if old is not None and isinstance(old.fn, Edited) else ()
    moved = [replace(step, source=step.source + len(before)) if isinstance(step, AddProduct) else step
             for step in steps]  # fmt: skip
    return Derived((*before, *sources), Edited(name, (*earlier, *moved)), shape)


def scale_of(axis: Axis, scale: Tensor, shape: torch.Size) -> Scale:
    """The step of one axis for one choice of s. shape: of the parameter.

    ``powers`` runs over the whole sizes of ``dims``; where ``where`` restricts a dimension, it may run over those
    indices only.
    """
    factor, where = axis.powers.factor(scale), dict(axis.where)
    for position, dim in enumerate(axis.dims):
        if factor.shape[position] != shape[dim] and dim in where and factor.shape[position] == len(where[dim]):
            wide = list(factor.shape)
            wide[position] = shape[dim]
            full = torch.ones(wide, dtype=factor.dtype, device=factor.device)
            factor = full.index_copy(position, where[dim].to(factor.device), factor)
    return Scale(axis.dims, factor, axis.where, axis.offset)


def _broadcast(vector: Tensor, dims: Sequence[int], values: Tensor, first: int) -> Tensor:
    """``vector`` over ``dims``, cut to the rows of a slice, in the shape that broadcasts to ``values``."""
    if 0 in dims:
        vector = vector.narrow(tuple(dims).index(0), first, values.shape[0])
    shape = [values.shape[dim] if dim in dims else 1 for dim in range(values.dim())]
    return vector.to(values.device).reshape(shape)
