"""A Python function -> a Rule. Patterns enter by the same door as models: traced to ATen, then normalised."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from qpass.capture.normalise import normalise_graph
from qpass.graph.rule import Pattern, Rule

# A literal hole is traced as a number that no model contains, and recognised by it afterwards.
_Shapes = Mapping[str, tuple[int, ...]]
_FLOAT_SENTINEL, _INT_SENTINEL = 1.2345678e-05, 987654321


class _Unset:
    """A rule whose ``becomes`` is not written yet."""

    def __init__(self, functions: list[Callable[..., Any]], shapes: _Shapes, sizes: Mapping[str, int],
                 anchors: tuple[str, ...]) -> None:
        self.functions, self.shapes, self.sizes, self.anchors = functions, shapes, sizes, anchors

    def or_spelled(self, function: Callable[..., Any]) -> _Unset:
        """Another spelling of the same meaning, with the same arguments."""
        self.functions.append(function)
        return self

    def becomes(self, function: Callable[..., Any]) -> Rule:
        """The replacement: called with the bound values by name."""
        return self._rule(function, None)

    def becomes_where(self, where: Callable[[Mapping[str, Any]], str | None]) -> Callable[..., Rule]:
        """As ``becomes``, with a condition on the bound values: None if it holds, else the reason in words."""
        return lambda function: self._rule(function, where)

    def _rule(self, function: Callable[..., Any], where: Any) -> Rule:
        doc = inspect.getdoc(inspect.getmodule(self.functions[0])) or ""
        traced = functools.cache(lambda: _trace_all(self.functions, self.shapes, self.sizes))
        name = self.functions[0].__name__
        return Rule(name, doc, traced, becomes=function, where=where, anchors=self.anchors)


def rule(*anchors: str, sizes: Mapping[str, int] | None = None, **shapes: tuple[int, ...]) -> Callable[..., _Unset]:
    """Decorate a pattern function: ``shapes`` gives an example shape for each tensor argument.

    Every spelling holds an op named in ``anchors``; where a graph has none of them, the pattern is not even traced.

    Arguments annotated ``float`` or ``int`` are named literal holes, and so is every integer of the example shapes
    that ``sizes`` names: choose sizes that no other literal of the pattern has. The function is traced in float32 and
    in bfloat16, which stands for any half precision.
    """

    def wrap(function: Callable[..., Any]) -> _Unset:
        return _Unset([function], shapes, sizes or {}, anchors)

    return wrap


def _trace_all(functions: list[Callable[..., Any]], shapes: _Shapes, sizes: Mapping[str, int]) -> tuple[Pattern, ...]:
    """Each spelling in both types. One that names no dtype in half precision casts nothing, and serves any type."""
    unique: dict[str, Pattern] = {}
    for function in functions:
        half = _trace(function, shapes, sizes, torch.bfloat16)
        if not any(_names_dtype(node) for node in half.graph.nodes):
            unique.setdefault(str(half.graph), half)
            continue
        full = _trace(function, shapes, sizes, torch.float32)
        if str(full.graph) == str(half.graph):
            unique.setdefault(str(full.graph), full)
        else:
            for pattern in (full, half):
                unique.setdefault(f"typed {pattern.graph}", replace(pattern, typed=True))
    return tuple(unique.values())


def _names_dtype(node: fx.Node) -> bool:
    return any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values()))


def _trace(function: Callable[..., Any], shapes: _Shapes, sizes: Mapping[str, int], dtype: torch.dtype) -> Pattern:
    parameters = inspect.signature(function).parameters
    examples = [torch.ones(shapes[name], dtype=dtype) for name in parameters if name in shapes]
    literals = {name: _sentinel(parameter, number) for number, (name, parameter) in enumerate(parameters.items())
                if name not in shapes}
    tensors = [name for name in parameters if name in shapes]

    def call(*values: Any) -> Any:
        return function(**dict(zip(tensors, values)), **literals)

    with torch.no_grad():
        module = make_fx(call, pre_dispatch=True, tracing_mode="fake")(*examples)
    holes = [node for node in module.graph.nodes if node.op == "placeholder"]
    for hole, name in zip(holes, tensors):
        hole.name = hole.target = name
    normalise_graph(module.graph)
    root = _root(module.graph)
    return Pattern(module.graph, root, tuple(tensors), _holes(literals, sizes))


def _holes(literals: Mapping[str, float | int], sizes: Mapping[str, int]) -> dict[float | int, str]:
    return {value: name for name, value in {**literals, **sizes}.items()}


def _sentinel(parameter: inspect.Parameter, number: int) -> float | int:
    if parameter.annotation in (float, "float"):
        return _FLOAT_SENTINEL * (number + 1)
    return _INT_SENTINEL + number


def _root(graph: fx.Graph) -> fx.Node:
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    node = result[0] if isinstance(result, list | tuple) else result
    assert isinstance(node, fx.Node)
    return node
