"""Rotary embedding by table, keys and values into the cache, attention over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.graph.values import op_name
from qpass.numerics.integer.attention import score_room
from qpass.numerics.integer.cache import EXTRA
from qpass.numerics.integer.dyadic import fit_one
from qpass.passes.integer.dyadics import LOG2E
from qpass.passes.integer.positions import angle_table
from qpass.passes.integer.state import Row, State, refused

_SDPA = "load the model with attn_implementation='sdpa', if it adds nothing else to the scores"


def rotary(state: State, node: fx.Node) -> Row:
    """The rule of qpass.rotary."""
    x = state.row(node.args[0], node)
    cos, sin = (angle_table(state, arg, node) for arg in node.args[1:3])
    interleaved = bool(node.args[3]) if len(node.args) > 3 else False
    k_shape = tuple(x.k.meta["val"].shape)  # a token's, which its heads share
    return state.rows(ops.integer_rotary, x.x, x.k, cos, sin, interleaved, like=node, k_shape=k_shape)


def packed(state: State, arg: Any, node: fx.Node) -> fx.Node:
    """Keys or values as they lie in the cache: those of a cache as they are, rows packed."""
    value = state.values[arg]
    if isinstance(value, fx.Node):
        return value
    row = state.row(arg, node)
    shape = tuple(arg.meta["val"].shape)
    val = state.type((*shape[:-1], shape[-1] + EXTRA), torch.int8)
    return state.call(ops.integer_pack, row.x, row.k, state.options.attention, like=arg, val=val)


def cache_update(state: State, node: fx.Node) -> fx.Node:
    """The rule of qpass.cache_update: the cache holds int8 [B, H, S, D + 2]."""
    past = state.plain(node.args[0], node)
    new = packed(state, node.args[1], node)
    shape = tuple(node.meta["val"].shape)
    val = state.type((*shape[:-1], shape[-1] + EXTRA), torch.int8)
    return state.call(ops.cache_update, past, new, like=node, val=val, name=node.meta["name"])


def _mask(state: State, mask: Any, node: fx.Node) -> fx.Node | None:
    if mask is None:
        return None
    value = mask.meta["val"]
    if value.dtype != torch.bool:
        raise refused("an attention mask that is added to the scores has no integer form", node, _SDPA)
    if value.dim() != 4 or value.shape[1] != 1:
        raise refused(f"an attention mask of shape {list(value.shape)} has no integer form", node)
    return state.plain(mask, node)


def attention(state: State, node: fx.Node) -> Row:
    """The rule of qpass.attention."""
    q, k, v, mask, *rest = node.args
    assert isinstance(q, fx.Node) and isinstance(q.meta["val"], Tensor)
    bits, width = state.options.attention, q.meta["val"].shape[-1]
    score_room(width, bits)  # refused here, before anything runs
    codes, _, m, exponent = state.quantized(q, state.row(q, node), bits, True)
    keys, values = packed(state, k, node), packed(state, v, node)
    scale = float(rest[1]) if len(rest) > 1 and rest[1] is not None else width**-0.5  # type: ignore[arg-type]
    if scale <= 0:
        raise refused(f"{op_name(node.target)} with a scale of {scale} has no integer form", node)
    unit = 1.0 if state.options.mode == "literal" else LOG2E  # of e^x, or of 2^x
    clip = round(state.options.clipped * unit * 2**15)
    args = (codes, m, exponent, keys, values, _mask(state, mask, node), bool(rest[0]) if rest else False)
    scaling = (*fit_one(scale * unit), bits, clip, state.options.mode)
    return state.rows(ops.integer_attention, *args, state.table(), *scaling, like=node)


def eager(state: State, node: fx.Node) -> Row:
    """The rule of qpass.eager_attention, whose mask is added to the scores: there is none."""
    cap = node.args[5] if len(node.args) > 5 else 0.0
    if cap:
        raise refused(f"attention with scores capped by tanh at {cap} has no integer form", node)
    raise refused("attention of kind 'eager' has no integer form", node, _SDPA)


RULES = {ops.rotary: rotary, ops.cache_update: cache_update, ops.attention: attention,
         ops.eager_attention: eager}
