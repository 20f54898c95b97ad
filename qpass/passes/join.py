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
    """Apply the joins in their order, wherever a consumer reads the first two results of a producer."""
    for found in joins:
        for node in list(graph.nodes):
            if op_name(node.target) == found.consumer and (producer := _producer(node, found)) is not None:
                _replace(graph, producer, node, found)
    graph.eliminate_dead_code()


def _producer(node: fx.Node, found: Join) -> fx.Node | None:
    """The producer, if the consumer reads its rows and whoever else does is allowed to and comes later."""
    x, k = node.args[:2]
    if not (isinstance(x, fx.Node) and isinstance(k, fx.Node)):
        return None
    if x.target is not operator.getitem or k.target is not operator.getitem or x.args[0] is not k.args[0]:
        return None
    producer = x.args[0]
    if not isinstance(producer, fx.Node) or op_name(producer.target) != found.producer or (x.args[1], k.args[1]) != (0, 1):
        return None
    others = [user for part in producer.users for user in part.users if user is not node]
    if others and (not found.keeps or any(user < node for user in others)):
        return None
    return producer


def _replace(graph: fx.Graph, producer: fx.Node, node: fx.Node, found: Join) -> None:
    with graph.inserting_before(node):
        both = graph.call_function(_overload(found.op), (*producer.args, *node.args[2:]))
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
