"""What the walk knows of a value: a size, and how its elements may be re-scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qpass.sites.system import narrowed

ZERO = torch.zeros((), dtype=torch.int64)


class Dynamic(int):
    """A number that depends on a symbolic size: it stands for any, and only its use as a size is a fact."""


@dataclass(frozen=True)
class Flow:
    """A value that depends on the model's input.

    Args:
        meta: a meta tensor with its (tiny) shape and its dtype.
        labels: int64 of that shape, see ``system``; with ``over``, one more dimension in front.
        why: for labels that are all 0, what keeps the value as it is.
        rows_sum: its last dimension sums to 1 (a softmax).
        over: rows of the first dimension belong to groups (tokens to experts) by this key; labels go by group then.
    """

    meta: Tensor
    labels: Tensor
    why: str = ""
    rows_sum: bool = False
    over: Any = None


@dataclass(frozen=True)
class Weight:
    """A parameter, or a view of one: for each of its dimensions, the index of each element of the view.

    Args:
        name: of the parameter.
        sizes: its shape.
        coords: one tensor of the view's shape for each dimension of the parameter; -1 where data picks the index.
        offset: the value is the parameter plus this.
        dtype: of the view.
    """

    name: str
    sizes: tuple[int, ...]
    coords: tuple[Tensor, ...]
    dtype: torch.dtype
    offset: float = 0.0

    @property
    def shape(self) -> torch.Size:
        """Of the view."""
        return self.coords[0].shape

    def moved(self, move: Callable[[Tensor], Any]) -> Any:
        """The same data movement on the parameter; a list where it gives a list."""
        found = [move(coord) for coord in self.coords]
        if isinstance(found[0], list | tuple):
            return [replace(self, coords=tuple(parts)) for parts in zip(*found)]
        return replace(self, coords=tuple(found))


def weight(name: str, like: Tensor) -> Weight:
    """The whole of a parameter. 0-d ones are taken as [1] expanded to []."""
    sizes = tuple(like.shape)
    if not sizes:
        return Weight(name, (), (torch.zeros((), dtype=torch.int64),), like.dtype)
    coords = []
    for dim, size in enumerate(sizes):
        view = [1] * len(sizes)
        view[dim] = size
        coords.append(torch.arange(size).view(view).expand(sizes))
    return Weight(name, sizes, tuple(coords), like.dtype)


@dataclass
class Use:
    """One way in which the graph reads a parameter; see ``site.Axis`` for the fields.

    Args:
        terms: labels of the view's shape, whose sum is what the parameter's elements are multiplied by.
        coords: as in ``Weight``.
    """

    param: str
    sizes: tuple[int, ...]
    coords: tuple[Tensor, ...]
    offset: float
    terms: list[tuple[str, Tensor]]
    node: str
    reads: tuple[str, ...] = ()
    bias: str | None = None
    order: int = 0


def varies(coord: Tensor) -> tuple[int, ...]:
    """The dimensions along which a tensor is not one element repeated."""
    return tuple(d for d in range(coord.dim()) if coord.shape[d] > 1 and coord.stride(d) != 0)


def carries(value: Tensor) -> bool:
    """Whether a tensor's elements can have factors: floats, and complex numbers."""
    return value.is_floating_point() or value.is_complex()


@dataclass
class Shifts:
    """What would have to hold for an additive shift of the same channels."""

    refused: list[tuple[Tensor, str]] = field(default_factory=list)
    biasless: list[tuple[Tensor, str]] = field(default_factory=list)

    def refuse(self, labels: Tensor, why: str) -> None:
        """No shift may pass here."""
        self.refused.append((torch.unique(narrowed(labels)), why))

    def needs_bias(self, labels: Tensor, node: str) -> None:
        """A shift needs a bias on this op, which has none."""
        self.biasless.append((torch.unique(narrowed(labels)), node))
