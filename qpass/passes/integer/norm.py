"""Norms of rows, their weights as dyadic vectors: a smoothing that a method put there stays there."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, fx

from qpass import ops
from qpass.graph.values import op_name
from qpass.numerics.integer.norm import WIDEST
from qpass.passes.integer.dyadics import constant_row, dyadic_vector
from qpass.passes.integer.norm_inputs import norm_options
from qpass.passes.integer.state import Row, State, name_of, refused


def _width(node: fx.Node) -> int:
    width = node.meta["val"].shape[-1]
    if not isinstance(width, int) or width > WIDEST:
        raise refused(f"{op_name(node.target)} over {width} channels has no integer form", node)
    return width


def _weight(state: State, node: fx.Node, width: int, offset: float) -> tuple[Any, ...]:
    if len(node.args) < 2 or node.args[1] is None:
        return None, None, None
    name = name_of(node.args[1], node)
    return dyadic_vector(state, name, name, width, partial(_offset, offset=offset), "as m / 2^k a channel")


def _offset(weight: Tensor, offset: float) -> Tensor:
    return weight + offset


def rms_norm(state: State, node: fx.Node) -> Row:
    """The rule of qpass.rms_norm."""
    x, width = state.row(node.args[0], node), _width(node)
    offset = float(node.args[3]) if len(node.args) > 3 else 0.0  # type: ignore[arg-type]
    weight = _weight(state, node, width, offset)
    rest = norm_options(state, node, float(node.args[2]))  # type: ignore[arg-type]
    return state.rows(ops.integer_rms_norm, x.x, x.k, *weight, *rest, like=node)


def layer_norm(state: State, node: fx.Node) -> Row:
    """The rule of qpass.layer_norm."""
    x, width = state.row(node.args[0], node), _width(node)
    weight = _weight(state, node, width, 0.0)
    bias: tuple[Any, ...] = (None, None)
    if node.args[2] is not None:
        bias = constant_row(state, name_of(node.args[2], node), width)
    rest = norm_options(state, node, float(node.args[3]))  # type: ignore[arg-type]
    return state.rows(ops.integer_layer_norm, x.x, x.k, *weight, *bias, *rest, like=node)


RULES = {ops.rms_norm: rms_norm, ops.layer_norm: layer_norm}
