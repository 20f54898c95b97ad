"""Trace a Python function of typed values into a graph that can be copied in many places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from qpass.capture.normalise import normalise_graph


@dataclass(frozen=True)
class Template:
    """A traced function: its placeholders are the tensor arguments in order, its output a flat list."""

    graph: fx.Graph

    def copy_into(self, graph: fx.Graph, before: fx.Node, args: Sequence[Any]) -> list[fx.Node]:
        """Copy the traced nodes before ``before``, reading ``args``; returns the result nodes."""
        values = iter([arg for arg in args if isinstance(arg, fx.Node)])
        mapping: dict[fx.Node, fx.Node] = {}
        scopes = before.meta.get("scopes", ())
        with graph.inserting_before(before):
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    mapping[node] = next(values)
                elif node.op == "output":
                    results = fx.map_arg(node.args[0], lambda arg: mapping[arg])
                    return list(results) if isinstance(results, list | tuple) else [results]
                else:
                    mapping[node] = graph.node_copy(node, lambda arg: mapping[arg])
                    mapping[node].meta = {"val": node.meta["val"], "scopes": scopes}
        raise AssertionError("a graph without an output")


def trace(fn: Callable[..., Any], args: Sequence[Any]) -> Template:
    """Trace ``fn(*args)``, where nodes stand for their fake values and everything else is a literal."""
    values = [arg.meta["val"] for arg in args if isinstance(arg, fx.Node)]
    mode = values[0].fake_mode
    with mode:  # fresh tensors: tracing tells its inputs apart by identity
        tensors = [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in values]

    def call(*values: Any) -> Any:
        left = iter(values)
        return fn(*(next(left) if isinstance(arg, fx.Node) else arg for arg in args))

    with mode, torch.no_grad():
        module = make_fx(call, pre_dispatch=True, tracing_mode="real", _allow_fake_constant=True)(*tensors)
    normalise_graph(module.graph)
    return Template(module.graph)
