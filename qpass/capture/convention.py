"""How a user's call maps to the flat tensors of a captured graph, as plain data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor

from qpass.errors import InputError


@dataclass(frozen=True)
class TensorSpec:
    """One flat input of the graph.

    Args:
        name: argument the tensor comes from, e.g. `input_ids`, `k0`, `batch['x']`.
        dtype: dtype the graph was captured with.
        shape: one entry a dim: an int if static, a dim name (or an expression of names) if dynamic.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class CallConvention:
    """Plain data that says how a call of the user's `forward` becomes flat tensors, and flat outputs its result.

    Args:
        kind: `causal_lm`, `encoder` or `module`.
        signature: signature of the user's `forward` without `self`.
        inputs: the flat tensor inputs of the graph, in order.
        outputs: names of the flat outputs of the graph, in order.
        device: where inputs and weights live.
        ranges: smallest and largest legal size of each dim name; None for no bound.
        notes: what capture decided that the user should know, e.g. why a dim is static.
    """

    kind: str
    signature: inspect.Signature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    device: torch.device
    ranges: Mapping[str, tuple[int, int | None]]
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """(flat input, flat output) pairs of a state that one call leaves and the next one takes."""
        return ()

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name; those of `**kwargs` are merged in. Raises InputError on a bad call."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            fix = f"call it as forward{self.signature}"
            raise InputError(f"The call does not fit the model's forward: {error}", fix=fix) from error
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        return arguments

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The graph's flat inputs for one call, in the order of `inputs`. Raises InputError or UnsupportedError."""
        raise NotImplementedError

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The user's result from the graph's flat outputs."""
        raise NotImplementedError

    def run(self, runner: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One call of the user's forward, computed by `runner(*flat_tensors)`."""
        return self.unflatten(runner(*self.flatten(args, kwargs)))

    def check(self, values: Sequence[Any]) -> list[Tensor]:
        """`values` if they are tensors of the dtypes, sizes and device of `inputs`; InputError otherwise.

        Dim names are bound on first sight, so that two arguments that share a dim must agree.
        """
        sizes: dict[str, int] = {}
        derived: list[tuple[TensorSpec, Tensor, str, int]] = []
        for spec, value in zip(self.inputs, values, strict=True):
            derived += self._check_one(spec, value, sizes)
        for spec, value, expression, size in derived:
            names, evaluate = _size_of(expression, tuple(sizes))
            if names is not None and (expected := int(evaluate(*(sizes[name] for name in names)))) != size:
                raise _mismatch(spec, _got(value), f" where {expression} is {expected}")
        return list(values)

    def _check_one(self, spec: TensorSpec, value: Any, sizes: dict[str, int]) -> list[tuple]:
        if not isinstance(value, Tensor) or value.dtype != spec.dtype or value.dim() != len(spec.shape):
            raise _mismatch(spec, _got(value))
        derived = []
        for want, size in zip(spec.shape, value.shape):
            if isinstance(want, int):
                if size != want:
                    raise _mismatch(spec, _got(value))
            elif not want.isidentifier():
                derived.append((spec, value, want, size))
            elif sizes.setdefault(want, size) != size:
                raise _mismatch(spec, _got(value), f" where {want} is {sizes[want]}")
            else:
                low, high = self.ranges.get(want, (1, None))
                if size < low or (high is not None and size > high):
                    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
                    raise _mismatch(spec, _got(value), f" where {want} is {bounds}")
        if value.device != self.device:
            fix = f"move it with .to('{self.device}')"
            raise InputError(f"`{spec.name}` is on {value.device}, the compiled model is on {self.device}", fix=fix)
        return derived


@functools.lru_cache(maxsize=1024)
def _size_of(expression: str, known: tuple[str, ...]) -> tuple[tuple[str, ...] | None, Callable[..., Any]]:
    """The dim names that a derived size is made of, and the size as a function of them; no names if it says less.

    A decode step checks one such size, and to parse it took longer than to compute the step of a small model.
    """
    parsed = sympy.sympify(expression, locals={name: sympy.Symbol(name) for name in known})
    names = tuple(sorted(symbol.name for symbol in parsed.free_symbols))
    # a dim that no input has by itself, or a function that only torch knows: nothing to check
    decided = set(names) <= set(known) and not parsed.atoms(AppliedUndef)
    return (names if decided else None), sympy.lambdify(names, parsed, modules="math")


def _got(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _mismatch(spec: TensorSpec, got: str, known: str = "") -> InputError:
    fix = "pass that, or compile again with example inputs and dynamic_shapes that allow it"
    return InputError(f"`{spec.name}` is {got}, the compiled model takes {spec}{known}", fix=fix)
