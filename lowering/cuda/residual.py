"""A residual that is added to a linear's result, added in the kernel of that linear.

before   %y = w4a16_linear(%x, ...); %add = add(%residual, %y)
after    %add = w4a16_linear(%x, ..., residual=%residual)

The result is rounded before it is added, so the bits are the same; that is sure for 16 bits only: in float32 a compiler
may make one instruction of the last product and the sum. The linear moves to where the sum was, and nothing else reads
it, so the residual cannot depend on it. Views between the two, which keep the last dimension, move behind. With many
rows, where the dot is Inductor's, so is the sum (``ops``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.graph.values import op_name

LINEARS = tuple(f"qpass_cuda.{name}_linear" for name in ("w4a16", "w4a8_int8", "w4a8_fp8", "int8", "fp8", "fp8_block"))
VIEWS = ("view", "reshape", "_unsafe_view")


def join_residuals(graph: fx.Graph) -> None:
    """Replace every sum of a linear that nothing else reads and a tensor of its shape and dtype."""
    for node in list(graph.nodes):
        if op_name(node.target) != "add" or len(node.args) != 2 or node.kwargs:
            continue
        left, right = node.args
        found = [(chain, other) for part, other in ((left, right), (right, left))
                 if (chain := _linear_behind(part)) and _fits(other, node, chain)]  # fmt: skip
        if found:  # the later of two linears: the other one is its residual
            _join(graph, node, *max(found, key=lambda one: _place(graph, one[0][0])))


def _linear_behind(part: Any) -> list[fx.Node]:
    """The linear and the views up to ``part``, each the only reader of the one before; empty if there is none."""
    chain: list[fx.Node] = []
    while isinstance(part, fx.Node) and len(part.users) == 1:
        chain.insert(0, part)
        if op_name(part.target) in LINEARS:
            taken = len(part.args) == len(part.target._schema.arguments)  # type: ignore[union-attr]
            return [] if taken or part.kwargs else chain
        if op_name(part.target) not in VIEWS:
            break
        part = part.args[0]
    return []


def _fits(other: Any, node: fx.Node, chain: list[fx.Node]) -> bool:
    """Whether the other side has the shape and the dtype of the sum and of the linear, but for views."""
    values = [one.meta.get("val") if isinstance(one, fx.Node) else None for one in (other, node, *chain)]
    if any(not isinstance(value, Tensor) for value in values) or other is chain[-1]:
        return False
    first, *rest = values
    return (first.dtype.itemsize == 2 and all(value.dtype is first.dtype for value in rest)
            and all(_same([value.shape[-1]], [first.shape[-1]]) for value in rest)
            and _same(first.shape, values[1].shape) and _same(first.shape, values[-1].shape))  # fmt: skip


def _same(one: Any, two: Any) -> bool:
    """Whether sizes are the same expressions; asks no symbol for its value."""
    kept = [[size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes] for sizes in (one, two)]
    return kept[0] == kept[1]


def _place(graph: fx.Graph, node: fx.Node) -> int:
    return list(graph.nodes).index(node)


def _join(graph: fx.Graph, node: fx.Node, chain: list[fx.Node], other: fx.Node) -> None:
    linear, *views = chain
    absent = (None,) * (len(linear.target._schema.arguments) - 1 - len(linear.args))  # type: ignore[union-attr]
    with graph.inserting_before(node):
        both = graph.call_function(linear.target, (*linear.args, *absent, other))  # type: ignore[arg-type]
        # the value is another one than the linear's, and named anew
        both.meta = {key: value for key, value in node.meta.items() if key != "name" or not views}
        both.meta["val"] = linear.meta["val"]
        for view in views:
            both = graph.call_function(view.target, (both, *view.args[1:]))  # type: ignore[arg-type]
            both.meta = {**node.meta, "val": view.meta["val"]}
            if view is not views[-1]:
                del both.meta["name"]
    node.replace_all_uses_with(both)
    for done in (node, *reversed(views), linear):  # the linear writes its counters: nobody else would take it away
        graph.erase_node(done)
