"""Ops that move rows without changing them, and their sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.graph.values import op_name
from qpass.passes.integer.state import Absent, Row, State, Value, refused

aten = torch.ops.aten


def _mapped(state: State, args: Any) -> Any:
    """Arguments that are sizes and indices, in the new graph."""
    return fx.map_arg(args, lambda arg: state.values[arg])  # type: ignore[arg-type, return-value]


def _moved(state: State, node: fx.Node, row: Row, args: Any) -> Row:
    """The same op on x and on k."""
    shape = tuple(node.meta["val"].shape)
    x = state.call(node.target, row.x, *args, like=node, val=state.type(shape, torch.int32), name=node.meta["name"])
    val = state.type((*shape[:-1], 1), torch.int32)
    k = state.call(node.target, row.k, *args, like=node, val=val, name=f"{node.meta['name']}.exponent")
    return Row(x, k)


def _or_absent(state: State, node: fx.Node) -> Row | Absent:
    """The first argument's rows; or that there are none, which matters only if somebody asks for the result."""
    value = state.values[node.args[0]]  # type: ignore[index]
    return value if isinstance(value, Row | Absent) else Absent(node, node)


def reshape(state: State, node: fx.Node) -> Value:
    """Channels split into heads, heads side by side, or other dimensions than channels; no other is of rows."""
    row = _or_absent(state, node)
    if isinstance(row, Absent):
        return Absent(node, row.culprit)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = tuple(source.meta["val"].shape), tuple(node.meta["val"].shape)
    if len(after) == len(before) + 1 and _same(before[:-1], after[:-2]):
        shape = _mapped(state, node.args[1])
        x = state.call(aten.reshape.default, row.x, shape, like=node, val=state.type(after, torch.int32),
                       name=node.meta["name"])  # fmt: skip
        val = state.type((*after[:-2], 1, 1), torch.int32)
        k = state.call(aten.unsqueeze.default, row.k, -1, like=node, val=val, name=f"{node.meta['name']}.exponent")
        return Row(x, k)
    if len(after) == len(before) - 1 and _same(before[:-2], after[:-1]):
        return state.rows(ops.integer_merge_heads, row.x, row.k, like=node)
    if _same(before, after):
        return row
    if _same(before[-1:], after[-1:]) and _same(before[:-1], tuple(row.k.meta["val"].shape)[:-1]):
        return _rows_regrouped(state, node, row)
    raise refused(f"a reshape from {list(before)} to {list(after)} has no integer form", node)


def _rows_regrouped(state: State, node: fx.Node, row: Row) -> Row:
    """[B, T, C] as [B · T, C], or back: channels stay together, and each row keeps its exponent."""
    after, shape = tuple(node.meta["val"].shape), _mapped(state, node.args[1])
    x = state.call(aten.reshape.default, row.x, shape, like=node, val=state.type(after, torch.int32),
                   name=node.meta["name"])  # fmt: skip
    k = state.call(aten.reshape.default, row.k, [*shape[:-1], 1], like=node, name=f"{node.meta['name']}.exponent",
                   val=state.type((*after[:-1], 1), torch.int32))  # fmt: skip
    return Row(x, k)


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return [str(size) for size in one] == [str(size) for size in two]


def transpose(state: State, node: fx.Node) -> Value:
    """Rows change places; channels stay the last dimension."""
    row = _or_absent(state, node)
    if isinstance(row, Absent):
        return Absent(node, row.culprit)
    rank = node.meta["val"].dim()
    if any(int(dim) % rank == rank - 1 for dim in node.args[1:3]):  # type: ignore[arg-type]
        raise refused("a transpose of channels has no integer form", node)
    source = row.k.meta["val"].shape
    order = list(range(rank))
    one, two = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    order[one], order[two] = two, one
    x = state.call(node.target, row.x, *node.args[1:], like=node, name=node.meta["name"],
                   val=state.type(tuple(node.meta["val"].shape), torch.int32))  # fmt: skip
    k = state.call(node.target, row.k, *node.args[1:], like=node, name=f"{node.meta['name']}.exponent",
                   val=state.type([source[dim] for dim in order], torch.int32))  # fmt: skip
    return Row(x, k)


def index(state: State, node: fx.Node) -> Value:
    """Rows picked by integers; a bool or an integer value is indexed as it is."""
    value = state.values[node.args[0]]  # type: ignore[index]
    indices = node.args[1]
    assert isinstance(indices, list | tuple)
    if isinstance(value, fx.Node):
        return state.copy(node)
    if isinstance(value, Absent):
        return Absent(node, value.culprit)
    if len(indices) >= node.meta["val"].dim():
        raise refused("an index into channels has no integer form", node)
    picked = [None if arg is None else state.plain(arg, node) for arg in indices]
    return _moved(state, node, value, (picked,))


def to_copy(state: State, node: fx.Node) -> Value:
    """A cast of rows is nothing; a cast of integers to integers stays."""
    value = state.values[node.args[0]]  # type: ignore[index]
    if isinstance(value, Row) and node.meta["val"].dtype.is_floating_point:
        return value
    if isinstance(value, fx.Node) and not node.meta["val"].dtype.is_floating_point:
        return state.copy(node)
    return Absent(node, value.culprit if isinstance(value, Absent) else node)


def add(state: State, node: fx.Node) -> Value:
    """Two rows: their sum, exponents aligned. Two integers: as it was."""
    one, two = (state.values.get(arg) if isinstance(arg, fx.Node) else arg for arg in node.args[:2])
    if isinstance(one, Row) and isinstance(two, Row) and not node.kwargs:
        shapes = {tuple(str(size) for size in arg.meta["val"].shape) for arg in node.args[:2]}  # type: ignore[union-attr]
        if len(shapes) > 1:
            raise refused("a sum of rows of different shapes has no integer form", node)
        return state.rows(ops.integer_add, one.x, one.k, two.x, two.k, like=node)
    if isinstance(one, Row | Absent) or isinstance(two, Row | Absent):
        return state.absent(node)
    if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dtype.is_floating_point:
        raise refused(f"{op_name(node.target)} of integers to a float has no integer form", node)
    return state.copy(node)


RULES = {
    aten.reshape.default: reshape, aten.view.default: reshape, aten.transpose.int: transpose,
    aten.index.Tensor: index, aten._to_copy.default: to_copy, aten.add.Tensor: add,
}  # fmt: skip
