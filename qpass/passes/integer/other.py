"""What an op becomes that has no rule, or whose rule is for rows and has none to work on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.passes.integer.state import Row, State, Value


def other(state: State, node: fx.Node) -> Value:
    """An op on integers, bools and sizes stays as it is; what has a float in or out has no integer form."""
    floats = [leaf for leaf in _leaves(node.meta.get("val")) if leaf.dtype.is_floating_point]
    if floats or any(not isinstance(state.values[arg], fx.Node) for arg in node.all_input_nodes):
        if node.target is torch.ops.aten.sym_size.int and isinstance(found := state.values[node.args[0]], Row):
            return state.call(node.target, found.x, *node.args[1:], like=node, val=node.meta["val"])
        return state.absent(node)
    return state.copy(node)


def _leaves(value: Any) -> list[Tensor]:
    values = value if isinstance(value, list | tuple) else [value]
    return [leaf for leaf in values if isinstance(leaf, Tensor)]
