"""Rows times a constant: a number, or a parameter of one element or of one a channel.

before   %e = mul(%embedding, model.embed_scale) : f32[B, T, C]          %q = mul(%q_proj, 0.25)
after    %e, %e.exponent = integer_scale(%embedding, %embedding.exponent, embed_scale.mantissa, .shift, .exponent)
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.passes.integer.dyadics import constant_vector, dyadic_vector
from qpass.passes.integer.other import other
from qpass.passes.integer.state import Row, State, Value, refused

aten = torch.ops.aten


def mul(state: State, node: fx.Node) -> Value:
    """The rule of aten.mul. Other products are of integers, or of floats that only tables are made of."""
    one, two = node.args[:2]
    if not isinstance(_value(state, one), Row):
        one, two = two, one
    return _scaled(state, node, one, two, inverse=False)


def div(state: State, node: fx.Node) -> Value:
    """The rule of aten.div without a rounding: rows times 1 / constant."""
    return _scaled(state, node, node.args[0], node.args[1], inverse=True)


def _value(state: State, arg: Any) -> Any:
    return state.values.get(arg) if isinstance(arg, fx.Node) else arg


def _scaled(state: State, node: fx.Node, rows: Any, factor: Any, *, inverse: bool) -> Value:
    row = _value(state, rows)
    if not isinstance(row, Row):
        return other(state, node)
    vector = _vector(state, node, factor, inverse)
    if vector is None:
        return state.absent(node)
    return state.rows(ops.integer_scale, row.x, row.k, *vector, like=node)


def _vector(state: State, node: fx.Node, factor: Any, inverse: bool) -> tuple[fx.Node, ...] | None:
    """The dyadic vector of a constant factor; None for one that is computed."""
    if isinstance(factor, int | float):
        value = float(factor)
        if not math.isfinite(value) or (inverse and value == 0):
            raise refused(f"a product with {'1 / ' if inverse else ''}{factor} has no integer form", node)
        value = 1 / value if inverse else value
        return constant_vector(state, f"integer.factor.{node.meta['name'].replace('/', '.')}", value)
    dtype = factor.meta["val"].dtype if isinstance(factor, fx.Node) else None
    while isinstance(factor, fx.Node) and factor.target is aten._to_copy.default:
        factor = factor.args[0]  # a parameter in another dtype: rounded as the float model rounds it
    if not isinstance(factor, fx.Node) or factor.op != "get_attr":
        return None
    name, width = str(factor.target), node.meta["val"].shape[-1]
    shape = tuple(state.program.like(name).shape)
    if math.prod(shape) != 1 and shape != (width,):
        raise refused(f"a product with a parameter of shape {list(shape)} has no integer form", node)
    what = "1 / it, as m / 2^k" if inverse else "as m / 2^k"
    base = f"{name}.inverse" if inverse else name
    return dyadic_vector(state, base, name, math.prod(shape), partial(_flat, inverse=inverse, dtype=dtype), what)


def _flat(factor: Tensor, inverse: bool, dtype: torch.dtype) -> Tensor:
    factor = factor.to(dtype).double().flatten()  # dyadic_vector widens before it calls
    return 1 / factor if inverse else factor


RULES = {aten.mul.Tensor: mul, aten.div.Tensor: div}
