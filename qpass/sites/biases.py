"""Which bias an op adds to its result: found in the graph, and put there where a shift needs one."""

from __future__ import annotations

import torch
from torch import fx

from qpass import ops
from qpass.sites.site import Axis

aten = torch.ops.aten

_BIAS_AT = {aten.linear.default: 2, ops.layer_norm: 2, aten.layer_norm.default: 3}
_WEIGHT_AT = {aten.linear.default: 1}
_ADDS = (aten.add.Tensor, aten.sub.Tensor)
RULE = "shift"
"""``meta['rule']`` of an addition that a shift put behind an op without a place for a bias."""


class Biases:
    """The biases of one graph, which may change under it."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.nodes: dict[str, fx.Node] = {node.meta["name"]: node for node in graph.nodes if "name" in node.meta}

    def at(self, name: str) -> str | None:
        """The parameter that is added to the result of the op ``name``, or None."""
        node = self.nodes[name]
        place = _BIAS_AT.get(node.target)
        if place is not None:
            found = node.args[place] if len(node.args) > place else None
            return str(found.target) if isinstance(found, fx.Node) and found.op == "get_attr" else None
        for user in node.users:
            if user.target is aten.add.Tensor and user.meta.get("rule") == RULE:
                return str(user.args[1].target)  # type: ignore[union-attr]
        return None

    def of(self, axis: Axis) -> str | None:
        """The bias of a producer."""
        return axis.bias or (self.at(axis.node) if axis.node in self.nodes else None)

    def adds(self, axis: Axis) -> bool:
        """Whether the parameter of an ``affine`` axis is itself what is added."""
        node = self.nodes.get(axis.node)
        if node is None or axis.role != "affine":
            return False
        place = _BIAS_AT.get(node.target)
        if place is not None and len(node.args) > place:
            bias = node.args[place]
            return isinstance(bias, fx.Node) and bias.target == axis.param
        return node.target in _ADDS

    def readers(self, axis: Axis) -> list[str]:
        """The ops that meet an axis: its own; every linear with that weight, for the columns of a shared weight."""
        found = [axis.node]
        if axis.role == "column":
            for node in self.graph.nodes:
                place = _WEIGHT_AT.get(node.target)
                weight = node.args[place] if place is not None else None
                if isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target == axis.param:
                    found.append(node.meta["name"])
        return list(dict.fromkeys(found))

    def users(self, param: str) -> list[str]:
        """Value names of all ops that read a parameter."""
        return [user.meta["name"] for node in self.graph.nodes if node.op == "get_attr" and node.target == param
                for user in node.users]  # fmt: skip

    def can_add(self, name: str) -> bool:
        """Whether ``add`` knows how to give the op a bias."""
        node = self.nodes[name]
        return node.target in _BIAS_AT or node.target is ops.rms_norm

    def add(self, node: fx.Node, bias: fx.Node) -> None:
        """Let an op that has no bias add ``bias``; a norm without a place for it gets an addition behind it."""
        place = _BIAS_AT.get(node.target)
        if place is not None:
            args = [*node.args, *[None] * (place - len(node.args))]
            node.args = (*args[:place], bias, *args[place + 1 :])
            return
        with self.graph.inserting_after(node):
            added = self.graph.call_function(aten.add.Tensor, (node, bias))
        added.meta = {"val": node.meta["val"], "scopes": node.meta.get("scopes", ()), "rule": RULE,
                      "name": f"{node.meta['name']}.shifted"}  # fmt: skip
        node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
