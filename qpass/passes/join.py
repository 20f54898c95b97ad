"""LOWERED -> LOWERED: two calls of kernels, one reading the other's rows, become the kernel that does both.

before   %y, %k = integer_norm(%x, ...); %codes, ... = integer_quantize(%y, %k, 8, False)
after    %codes, ... = integer_norm_quantize(%x, ..., 8, False)

Calls of one kernel on the same rows (queries, keys and values) become one call as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from qpass.graph.values import op_name
from qpass.lowering import Join, Siblings


def join(graph: fx.Graph, joins: Sequence[Join | Siblings | Callable[[fx.Graph], None]]) -> None:
    """Apply the joins in their order, wherever a consumer reads the results of a producer."""
    for found in joins:
        if isinstance(found, Siblings):
            _gather(graph, found)
        elif isinstance(found, Join):
            for node in list(graph.nodes):
                if op_name(node.target) == found.consumer and (producer := _producer(node, found)) is not None:
                    _replace(graph, producer, node, found)
        else:
            found(graph)
        graph.eliminate_dead_code()  # a producer that nobody reads any more is no reader of its own arguments


def _gather(graph: fx.Graph, found: Siblings) -> None:
    """Make one call of those that read the same, where the first of them is."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if op_name(node.target) == found.one:
            groups.setdefault(node.args[: found.shared], []).append(node)
    for group in groups.values():
        if len(group) > 1:
            _as_one(graph, group, found)


def _as_one(graph: fx.Graph, group: list[fx.Node], found: Siblings) -> None:
    first, others = group[0], group[1:]
    for node in others:
        for arg in node.all_input_nodes:
            if arg.op == "get_attr" and first < arg:  # it reads nothing itself
                first.prepend(arg)
    with graph.inserting_before(first):
        lists = [list(parts) for parts in zip(*(node.args[found.shared :] for node in group))]
        both = graph.call_function(_overload(found.op), (*first.args[: found.shared], *lists))
    both.meta = {key: value for key, value in first.meta.items() if key != "name"}
    both.meta["val"] = tuple(value for node in group for value in node.meta["val"])
    at = 0
    for node in group:
        _take(graph, both, node, at)
        at += len(node.meta["val"])
        graph.erase_node(node)


def _producer(node: fx.Node, found: Join) -> fx.Node | None:
    """The producer, if the consumer reads its results and whoever else does is allowed to and comes later."""
    parts = [_behind(node.args[at], found) for at in found.reads]
    if not all(isinstance(part, fx.Node) for part in parts):
        return None
    producer = parts[0] if len(parts) == 1 else _whole(parts)
    if not isinstance(producer, fx.Node) or op_name(producer.target) != found.producer:
        return None
    results = [producer] if len(parts) == 1 else list(producer.users)
    others = [user for part in results for user in _readers(part, found) if user is not node]
    if others and (not found.keeps or any(user < node for user in others)):
        return None
    return producer


def _behind(arg: Any, found: Join) -> Any:
    """What the op that stands between reads; the argument itself where none has to."""
    return arg.args[0] if found.through and _stands_between(arg, found) else None if found.through else arg


def _stands_between(node: Any, found: Join) -> bool:
    return isinstance(node, fx.Node) and (op_name(node.target), *node.args[1:]) == found.through


def _readers(part: fx.Node, found: Join) -> list[fx.Node]:
    """Who reads a result, looked at through what stands between."""
    return [reader for user in part.users
            for reader in (user.users if found.through and _stands_between(user, found) else [user])]  # fmt: skip


def _whole(parts: list[Any]) -> Any:
    """The node whose results 0, 1, ... the parts are."""
    if any(part.target is not operator.getitem or part.args[1] != number for number, part in enumerate(parts)):
        return None
    whole = parts[0].args[0]
    return whole if all(part.args[0] is whole for part in parts) else None


def _replace(graph: fx.Graph, producer: fx.Node, node: fx.Node, found: Join) -> None:
    with graph.inserting_before(node):
        rest = [arg for at, arg in enumerate(node.args) if at not in found.reads]
        both = graph.call_function(_overload(found.op), (*producer.args, *rest))
        both.meta = {**node.meta}
        if not found.keeps:
            node.replace_all_uses_with(both)
            graph.erase_node(node)
            return
        both.meta["val"] = (*producer.meta["val"], *node.meta["val"])
        _take(graph, both, producer, 0)
    _take(graph, both, node, 2)
    graph.erase_node(node)


def _take(graph: fx.Graph, both: fx.Node, old: fx.Node, offset: int) -> None:
    """Results of ``old`` are now results of ``both``, from ``offset`` on."""
    after = both
    for part in list(old.users):
        with graph.inserting_after(after):
            made = graph.call_function(operator.getitem, (both, part.args[1] + offset))  # type: ignore[operator]
        made.meta, after = dict(part.meta), made
        part.replace_all_uses_with(made)
        graph.erase_node(part)


def _overload(name: str) -> Any:
    namespace, op = name.split(".")
    return getattr(getattr(torch.ops, namespace), op).default
