"""LOWERED -> LOWERED: two calls of kernels, one reading the other's rows, become the kernel that does both.

before   %y, %k = integer_norm(%x, ...); %codes, ... = integer_quantize(%y, %k, 8, False)
after    %codes, ... = integer_norm_quantize(%x, ..., 8, False)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from qpass.graph.values import op_name
from qpass.lowering import Join


def join(graph: fx.Graph, joins: Sequence[Join]) -> None:
    """Apply the joins in their order, wherever a consumer reads the results of a producer."""
    for found in joins:
        for node in list(graph.nodes):
            if op_name(node.target) == found.consumer and (producer := _producer(node, found)) is not None:
                _replace(graph, producer, node, found)
        graph.eliminate_dead_code()  # a producer that nobody reads any more is no reader of its own arguments


def _producer(node: fx.Node, found: Join) -> fx.Node | None:
    """The producer, if the consumer reads its results and whoever else does is allowed to and comes later."""
    parts = [node.args[at] for at in found.reads]
    if not all(isinstance(part, fx.Node) for part in parts):
        return None
    producer = parts[0] if len(parts) == 1 else _whole(parts)
    if not isinstance(producer, fx.Node) or op_name(producer.target) != found.producer:
        return None
    results = [producer] if len(parts) == 1 else producer.users
    others = [user for part in results for user in part.users if user is not node]
    if others and (not found.keeps or any(user < node for user in others)):
        return None
    return producer


def _whole(parts: list[Any]) -> Any:
    """The node whose results 0, 1, ... the parts are."""
    if any(part.target is not operator.getitem or part.args[1] != number for number, part in enumerate(parts)):
        return None
    return parts[0].args[0] if all(part.args[0] is parts[0].args[0] for part in parts) else None


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
