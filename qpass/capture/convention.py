"""How a user's call maps to the flat tensors of a captured graph, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
        notes: what capture decided that the user should know, e.g. why a dim is static.
    """

    kind: str
    signature: inspect.Signature
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    device: torch.device
    notes: tuple[str, ...] = field(default=(), kw_only=True)

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


def check_tensor(spec: TensorSpec, value: Any, sizes: dict[str, int], device: torch.device) -> Tensor:
    """`value` if it is a tensor of the dtype, rank, sizes and device that `spec` asks for; InputError otherwise.

    `sizes` binds dim names on first sight, so that two arguments that share a dim must agree.
    """
    if not isinstance(value, Tensor):
        raise _mismatch(spec, type(value).__name__)
    got = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.dtype != spec.dtype or value.dim() != len(spec.shape):
        raise _mismatch(spec, got)
    for want, size in zip(spec.shape, value.shape):
        if isinstance(want, str) and not want.isidentifier():
            continue  # an expression of other dims: the graph itself checks it
        expected = sizes.setdefault(want, size) if isinstance(want, str) else want
        if size != expected:
            known = f" where {want} is {expected}" if isinstance(want, str) else ""
            raise _mismatch(spec, got, known)
        if isinstance(want, str) and size == 0 and want not in ("past", "keep"):
            raise _mismatch(spec, got, f" where {want} is at least 1")
    if value.device != device:
        fix = f"move it with .to('{device}')"
        raise InputError(f"`{spec.name}` is on {value.device}, the compiled model is on {device}", fix=fix)
    return value


def _mismatch(spec: TensorSpec, got: str, known: str = "") -> InputError:
    fix = "pass that, or compile again with example inputs and dynamic_shapes that allow it"
    return InputError(f"`{spec.name}` is {got}, the compiled model takes {spec}{known}", fix=fix)
