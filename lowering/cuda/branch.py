"""A low-rank branch (LoRC) as a second dot in the kernel of its linear, where that is one of 4-bit weights.

before   %y = w4a16_linear(%x, ...); %t = linear(%x, V); %u = low_rank_up(%t, U, scales); %add = add(%y, %u)
after    %t = linear(%x, V); %add = w4a16_linear(%x, ..., %t, U, scales)

The sum is then rounded once. Any sum of such a linear with one of few inputs is that: names do not matter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qpass.graph.values import op_name

MAX_RANK = 128
"""Of a branch: more registers than the tile has would be needed for more."""
LINEARS = ("qpass_cuda.w4a16_linear", "qpass_cuda.w4a8_int8_linear", "qpass_cuda.w4a8_fp8_linear")


def join_branches(graph: fx.Graph) -> None:
    """Replace every sum of a linear and its branch."""
    for node in list(graph.nodes):
        if op_name(node.target) != "add" or len(node.args) != 2 or node.kwargs:
            continue
        linear, second = node.args
        branch = _branch(second)
        if branch is None or not _joinable(linear, node):
            continue
        with graph.inserting_before(node):
            both = graph.call_function(linear.target, (*linear.args, *branch))
        both.meta = {**node.meta}
        node.replace_all_uses_with(both)
        for done in (node, linear, second):  # the linear writes its counters, so that nobody else would take it away
            graph.erase_node(done)


def _joinable(linear: Any, node: fx.Node) -> bool:
    return (isinstance(linear, fx.Node) and op_name(linear.target) in LINEARS and len(linear.users) == 1
            and linear.meta["val"].dtype is node.meta["val"].dtype)  # fmt: skip


def _branch(node: Any) -> tuple[Any, ...] | None:
    """(V x, U, scales of U's rows) where the node is U's product, which nothing else reads."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if op_name(node.target) == "qpass_cuda.low_rank_up":
        return node.args[:3] if node.args[3] is None else None
    if op_name(node.target) != "linear" or len(node.args) != 2:
        return None
    value = node.args[1].meta["val"]  # type: ignore[union-attr]
    return (*node.args, None) if isinstance(value, Tensor) and value.shape[1] <= MAX_RANK else None
