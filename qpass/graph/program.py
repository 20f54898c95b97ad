"""Program: the one value that flows through every pass.

A program is a graph, the tensors it uses by name, and a log of what was done to it. It is never edited in place: a
pass copies the graph (nodes only, tensors are shared), edits the copy, and returns a new program.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class Derived:
    """A parameter that is computed from others when it is asked for, and never kept.

    Quantized codes and packed weights are derived, so a pipeline of passes holds the user's weights once and builds
    each final tensor straight from them: peak memory is the weights, the result, and one layer.

    Args:
        sources: names of the parameters that ``fn`` takes, in order.
        fn: ``(*tensors) -> tensor``; pure.
        like: a meta tensor with the result's shape and dtype.
    """

    sources: tuple[str, ...]
    fn: Callable[..., Tensor]
    like: Tensor


Param = Tensor | Derived


@dataclass(frozen=True)
class Change:
    """One line of a program's log: which pass did what to which value."""

    by: str
    where: str
    what: str


@dataclass(frozen=True)
class Program:
    """A graph with its parameters. See the module docstring.

    Attributes:
        graph: placeholders are the flat user inputs; ``get_attr`` targets are parameter names; one output tuple.
        params: parameter name -> tensor, or how to derive it.
        stage: name of the form the graph is in (``qpass.stages``).
        dims: symbol in the graph's shapes -> the user's name for it, for example ``{"s33": "batch"}``.
        call: how the user's arguments map to the flat inputs and back.
        log: what each pass did, oldest first.
        history: parameter name -> the edits it went through, for printing.
        weights: names of the parameters that are the model's own weights; the rest are buffers and constants.
    """

    graph: fx.Graph
    params: Mapping[str, Param]
    stage: str
    dims: Mapping[str, str] = field(default_factory=dict)
    call: Any = None
    log: tuple[Change, ...] = ()
    history: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()

    def tensor(self, name: str) -> Tensor:
        """The value of parameter ``name``; derived ones are computed now."""
        param = self.params[name]
        if isinstance(param, Derived):
            return param.fn(*(self.tensor(source) for source in param.sources))
        return param

    def like(self, name: str) -> Tensor:
        """A tensor with the shape and dtype of parameter ``name``, at no cost."""
        param = self.params[name]
        return param.like if isinstance(param, Derived) else param

    def used_params(self) -> list[str]:
        """Names of the parameters that the graph reads, in graph order."""
        return list(dict.fromkeys(node.target for node in self.graph.nodes if node.op == "get_attr"))

    def placeholders(self) -> list[fx.Node]:
        """The nodes of the flat user inputs, in call order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def nodes(self, *targets: Any) -> Iterator[fx.Node]:
        """The call nodes, or those with one of ``targets``, in graph order."""
        for node in self.graph.nodes:
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def value(self, name: str) -> fx.Node:
        """The node whose value name is ``name``; KeyError if there is none."""
        for node in self.graph.nodes:
            if node.meta.get("name") == name:
                found: fx.Node = node
                return found
        raise KeyError(name)

    def with_graph(self, graph: fx.Graph, **changes: Any) -> Program:
        """This program with another graph, less the parameters that it no longer needs."""
        program = replace(self, graph=graph, **changes)
        return replace(program, params=_reachable(program))

    def run(self, *inputs: Any, params: Mapping[str, Tensor] | None = None) -> Any:
        """Interpret the graph on flat inputs, op by op, on whatever device they are. Returns the output tuple."""
        return _Runner(self, params).run(*inputs)


class _Runner(fx.Interpreter):
    def __init__(self, program: Program, params: Mapping[str, Tensor] | None) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self.program, self.params = program, params

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        return self.program.tensor(target) if self.params is None else self.params[target]


def materialise(program: Program, done: Callable[[str], None] | None = None) -> dict[str, Tensor]:
    """The tensors that the graph reads, derived ones computed.

    What several of them are derived from (the codes of a weight) is computed once and dropped after its last use, so
    the peak is the result and one layer. ``done`` is called with each name.
    """
    uses: Counter[str] = Counter()
    wanted = program.used_params()
    pending = list(wanted)
    while pending:
        name = pending.pop()
        uses[name] += 1
        param = program.params[name]
        if uses[name] == 1 and isinstance(param, Derived):
            pending += param.sources
    cache: dict[str, Tensor] = {}

    def value(name: str) -> Tensor:
        param = program.params[name]
        if isinstance(param, Tensor):
            return param
        if name not in cache:
            cache[name] = param.fn(*(value(source) for source in param.sources))
        uses[name] -= 1
        return cache[name] if uses[name] else cache.pop(name)

    result: dict[str, Tensor] = {}
    for name in wanted:
        result[name] = value(name)
        if done:
            done(name)
    return result


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph's nodes with their meta, and the map from old to new nodes."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = new.graph_copy(graph, mapping)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    new_output = new.output(result)
    new_output.meta = dict(output.meta)
    return new, mapping


def _reachable(program: Program) -> dict[str, Param]:
    """The parameters that the graph reads, those they are derived from, and the parts of each that a pass has left.

    A part of ``w`` is a parameter with a name such as ``w.codes``, which nothing reads until quantized ops are there.
    """
    found: dict[str, Param] = {}
    pending = list(reversed(program.used_params()))
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found[name] = param = program.params[name]
        if isinstance(param, Derived):
            pending += param.sources
    parts = {name: param for name, param in program.params.items() if name not in found and _owner(name, found)}
    return {**found, **parts}


def _owner(name: str, found: Mapping[str, Param]) -> bool:
    """Whether ``name`` is ``owner.part`` or ``owner.part.part`` of a parameter in ``found``."""
    first = name.rpartition(".")[0]
    return first in found or first.rpartition(".")[0] in found
