"""Channels of rows cut apart and put side by side: fused projections, rotary embedding of a part of a head.

before   %parts = split(%qkv, 16, -1);   %q = %parts[0];   %y = cat([%turned, %rest], -1)
after    %q = slice(%qkv, -1, 0, 16), with %qkv's exponent;   %y, %y.exponent = integer_concat(%turned, ..., %rest, ...)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.passes.integer.other import other
from qpass.passes.integer.state import Row, State, Value

aten = torch.ops.aten


def _last(node: fx.Node, dim: Any) -> bool:
    """Whether a dimension is that of the channels."""
    source = node.args[0]
    first = source[0] if isinstance(source, list | tuple) else source
    assert isinstance(first, fx.Node)
    return int(dim) % int(first.meta["val"].dim()) == first.meta["val"].dim() - 1


def _piece(state: State, node: fx.Node, row: Row, start: Any, end: Any, val: Any, name: str) -> Row:
    """Channels start to end; the exponent is the whole row's."""
    x = state.call(aten.slice.Tensor, row.x, -1, start, end, like=node, name=name,
                   val=state.type(tuple(val.shape), torch.int32))  # fmt: skip
    return Row(x, row.k)


def split(state: State, node: fx.Node) -> Value:
    """The rule of aten.split and aten.split_with_sizes, of channels."""
    row, dim = state.values[node.args[0]], node.args[2] if len(node.args) > 2 else 0  # type: ignore[index]
    if not isinstance(row, Row) or not _last(node, dim):
        return other(state, node)
    pieces, start = [], 0
    for number, val in enumerate(node.meta["val"]):
        end = start + int(val.shape[-1])
        pieces.append(_piece(state, node, row, start, end, val, f"{node.meta['name']}.{number}"))
        start = end
    return tuple(pieces)


def item(state: State, node: fx.Node) -> Value:
    """The rule of a tuple's element."""
    whole = state.values[node.args[0]]  # type: ignore[index]
    return whole[int(node.args[1])] if isinstance(whole, tuple) else other(state, node)  # type: ignore[arg-type]


def cut(state: State, node: fx.Node) -> Value:
    """The rule of aten.slice: of channels, or of rows, whose exponents are cut as they are."""
    row = state.values[node.args[0]]  # type: ignore[index]
    dim, start, end, step = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    if not isinstance(row, Row) or step != 1:
        return other(state, node)
    start, end = (state.values[arg] if isinstance(arg, fx.Node) else arg for arg in (start, end))
    val, name = node.meta["val"], node.meta["name"]
    if _last(node, dim):
        return _piece(state, node, row, start, end, val, name)
    place = int(dim) % val.dim()  # type: ignore[arg-type]
    shape = [*row.k.meta["val"].shape]
    x = state.call(aten.slice.Tensor, row.x, dim, start, end, like=node, name=name,
                   val=state.type(tuple(val.shape), torch.int32))  # fmt: skip
    if isinstance(shape[place], int) and shape[place] == 1:
        return Row(x, row.k)  # an exponent that rows of this dimension share
    shape[place] = val.shape[place]
    k = state.call(aten.slice.Tensor, row.k, dim, start, end, like=node, name=f"{name}.exponent",
                   val=state.type(shape, torch.int32))  # fmt: skip
    return Row(x, k)


def cat(state: State, node: fx.Node) -> Value:
    """The rule of aten.cat, of channels: two rows at a time."""
    given = node.args[0]
    assert isinstance(given, list | tuple)
    # a rotary embedding of whole heads may put the rest of none behind them, which has no largest number
    parts = [part for part in given if str(part.meta["val"].shape[-1]) != "0"] or given  # type: ignore[union-attr]
    rows = [state.values[part] for part in parts]  # type: ignore[index]
    dim = node.args[1] if len(node.args) > 1 else 0
    if not _last(node, dim) or not all(isinstance(row, Row) for row in rows):
        return other(state, node)
    result, width = rows[0], int(parts[0].meta["val"].shape[-1])  # type: ignore[union-attr]
    lead = tuple(node.meta["val"].shape)[:-1]
    for part, row in zip(parts[1:], rows[1:]):
        assert isinstance(result, Row) and isinstance(row, Row)
        width += int(part.meta["val"].shape[-1])  # type: ignore[union-attr]
        result = state.rows(ops.integer_concat, result.x, result.k, row.x, row.k, like=node, shape=(*lead, width))
    return result


RULES = {
    aten.split.Tensor: split, aten.split_with_sizes.default: split, operator.getitem: item, aten.slice.Tensor: cut,
    aten.cat.default: cat,
}  # fmt: skip
