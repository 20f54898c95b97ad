"""Activations of rows. FSBR's vector and the factor of the sigmoid's argument become one dyadic vector."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.numerics.integer.activation import CUBIC, SMOOTHED
from qpass.passes.integer.dyadics import LOG2E, constant_vector, dyadic_vector
from qpass.passes.integer.state import Row, State, name_of, refused

_FACTOR = {"silu": LOG2E, "quick_gelu": 1.702 * LOG2E, **dict.fromkeys(SMOOTHED, 1.0)}
"""Of the argument; that of GELU has log2(e) in its polynomial."""
_NO_VECTOR = ("relu", *CUBIC)


def _argument(state: State, node: fx.Node, kind: str, smooth: Any) -> tuple[Any, ...]:
    """The kind as the integer op has it, and the dyadic vector of the argument of h in x · h(x · smooth).

    In mode ``literal`` the integers that the argument is divided by.
    """
    if state.options.mode == "literal":
        return kind, *_divisors(state, node, kind, smooth)
    kind = next((name for name, plain in SMOOTHED.items() if plain == kind and smooth is not None), kind)
    if kind not in _FACTOR and (kind not in _NO_VECTOR or smooth is not None):
        with_vector = "" if smooth is None else " with a smoothing vector"
        raise refused(f"the activation {kind!r}{with_vector} has no integer form", node)
    factor = _FACTOR.get(kind, LOG2E)
    if smooth is None:
        return kind, *constant_vector(state, f"integer.{kind}", factor)
    name = name_of(smooth, node)
    count = node.meta["val"].shape[-1]
    what = f"times {factor:.6g}, as m / 2^k"
    return kind, *dyadic_vector(state, name, name, count, partial(_times, factor=factor), what)


def _divisors(state: State, node: fx.Node, kind: str, smooth: Any) -> tuple[fx.Node, ...]:
    if kind not in ("silu", "relu"):
        raise refused(f"the activation {kind!r} in mode 'literal' has no integer form", node, "use mode paper")
    if smooth is None:
        return constant_vector(state, "integer.undivided", 1.0, bits=1)
    name, count = name_of(smooth, node), node.meta["val"].shape[-1]
    parts = [("divisor", (count,), torch.int32), ("divisor_shift", (count,), torch.int32),
             ("divisor_exponent", (1,), torch.int32)]  # fmt: skip
    return state.derive(name, parts, [name], _rounded, "1 / smoothing, to an integer")


def _rounded(smooth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    divisor = torch.round(1 / smooth.double()).clamp(1, 1 << 20).to(torch.int32)
    return divisor, torch.zeros_like(divisor), torch.zeros(1, dtype=torch.int32, device=divisor.device)


def _times(smooth: Tensor, factor: float) -> Tensor:
    return smooth * factor


def activation(state: State, node: fx.Node) -> Row:
    """The rule of qpass.activation."""
    x, kind = state.row(node.args[0], node), str(node.args[1])
    argument = _argument(state, node, kind, node.args[2] if len(node.args) > 2 else None)
    args = (x.x, x.k, *argument, state.table(), state.options.mode)
    return state.rows(ops.integer_activation, *args, like=node)


def gated(state: State, node: fx.Node) -> Row:
    """The rule of qpass.gated."""
    x, up, kind = state.row(node.args[0], node), state.row(node.args[1], node), str(node.args[2])
    argument = _argument(state, node, kind, node.args[3] if len(node.args) > 3 else None)
    args = (x.x, x.k, up.x, up.k, *argument, state.table(), state.options.mode)
    return state.rows(ops.integer_gated, *args, like=node)


RULES = {ops.activation: activation, ops.gated: gated}
