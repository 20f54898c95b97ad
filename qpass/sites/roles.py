"""What a linear is for, from the dataflow: ``@attention`` or ``@feed-forward``, for recipes that name no model.

    @attention       its result reaches an attention, or it reads one's, with no other linear between
    @feed-forward    every other linear of a repeated block
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import fx

from qpass import ops
from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.sites.blocks import partition

aten = torch.ops.aten

ATTENTION, FEED_FORWARD = "@attention", "@feed-forward"
_ATTENTION = frozenset({ops.attention, ops.eager_attention, aten.scaled_dot_product_attention.default})


def roles(program: Program) -> dict[str, str]:
    """Value name of each linear that has a role -> its role. program: RAISED, or of a later stage before QUANTISED."""
    found = {}
    try:
        blocks = partition(program)
    except UnsupportedError:
        blocks = None
    for node in program.nodes(aten.linear.default):
        name = node.meta["name"]
        if meets_attention(node):
            found[name] = ATTENTION
        elif blocks is not None and 0 <= blocks.level[name] < len(blocks.blocks):
            found[name] = FEED_FORWARD
    return found


def meets_attention(node: fx.Node) -> bool:
    """Whether an attention comes before the next linear, in front of a value or behind it."""
    return _meets(node, lambda value: value.users) or _meets(node, lambda value: value.all_input_nodes)


def _meets(start: fx.Node, steps: Callable[[fx.Node], Iterable[fx.Node]]) -> bool:
    """Whether an attention comes before the next linear in one direction."""
    seen = {start}
    front = [start]
    while front:
        for node in steps(front.pop()):
            if node.target in _ATTENTION:
                return True
            if node not in seen and node.op == "call_function" and node.target is not aten.linear.default:
                seen.add(node)
                front.append(node)
    return False
