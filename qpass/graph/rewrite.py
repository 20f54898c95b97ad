"""The only place that changes a graph: apply rules, replace values, insert calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from qpass.graph.match import Match, Mismatch, match
from qpass.graph.program import Change, Program, copy_graph
from qpass.graph.rule import Rule
from qpass.graph.values import assign_names, op_name


def apply_rules(program: Program, rules: Sequence[Rule], *, by: str) -> Program:
    """Apply every rule at every node, in rule order, consumers first. Returns a new program with a log line each."""
    graph, _ = copy_graph(program.graph)
    changes: list[Change] = []
    present, known = _ops(graph), 0
    for rule in rules:
        if len(changes) > known:  # a pattern is traced when something is left for it
            present, known = _ops(graph), len(changes)
        if rule.anchors and present.isdisjoint(rule.anchors):
            continue
        patterns = rule.patterns()
        roots = {pattern.root.target for pattern in patterns}
        for node in reversed(list(graph.nodes)):
            if node.op == "call_function" and node.target in roots and node.users:
                found = find(rule, node)
                if isinstance(found, Match):
                    _replace(graph, rule, node, found, f"{by}/{rule.name}")
                    changes.append(Change(f"{by}/{rule.name}", node.meta["name"], f"{len(found.nodes)} ops -> 1"))
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, log=program.log + tuple(changes))


def _ops(graph: fx.Graph) -> set[str]:
    return {op_name(node.target) for node in graph.nodes if node.op == "call_function" and node.users}


def find(rule: Rule, node: fx.Node) -> Match | Mismatch:
    """The first spelling of ``rule`` that matches at ``node``, or the mismatch that came furthest."""
    best = Mismatch("no pattern", -1)
    for pattern in rule.patterns():
        found = match(pattern, node)
        if isinstance(found, Match):
            refused = rule.where(found.bindings) if rule.where else None
            if refused is None:
                return found
            found = Mismatch(refused, len(found.nodes))
        if found.depth > best.depth:
            best = found
    return best


def _replace(graph: fx.Graph, rule: Rule, node: fx.Node, found: Match, note: str) -> None:
    call = {key: value for key, value in found.bindings.items() if key != "half_precision"}
    new = insert(graph, node, lambda: rule.becomes(**as_proxies(graph, call)), like=node)
    new.meta.update(name=node.meta["name"], val=node.meta["val"], rule=note)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    for inner in _users_first(found.nodes):
        if not inner.users and inner is not node:
            graph.erase_node(inner)


def _users_first(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return sorted(nodes, reverse=True)


def as_proxies(graph: fx.Graph, values: dict[str, Any]) -> dict[str, Any]:
    """Nodes as proxies, so that ordinary Python code over them appends nodes."""
    tracer = fx.proxy.GraphAppendingTracer(graph)
    return {key: fx.Proxy(value, tracer) if isinstance(value, fx.Node) else value for key, value in values.items()}


def insert(graph: fx.Graph, before: fx.Node, build: Callable[[], Any], *, like: fx.Node) -> fx.Node:
    """Append what ``build`` makes before ``before``, with the scopes and line of ``like``; the result has its type."""
    last = before.prev
    with graph.inserting_before(before):
        built = build()
        result: fx.Node = built.node if isinstance(built, fx.Proxy) else built
    result.meta.setdefault("val", like.meta["val"])  # known, and running an op on symbolic shapes costs milliseconds
    node = last.next
    while node is not before:
        node.meta.setdefault("scopes", like.meta.get("scopes", ()))
        if "stack_trace" in like.meta:
            node.meta.setdefault("stack_trace", like.meta["stack_trace"])
        if "val" not in node.meta:
            infer(node)
        node = node.next
    return result


def infer(node: fx.Node) -> None:
    """Set ``meta['val']`` of a call from the types of its arguments."""
    if node.op != "call_function":
        return
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
    mode = _fake_mode((args, kwargs))
    with mode if mode is not None else torch.no_grad():
        call: Any = node.target
        node.meta["val"] = call(*args, **kwargs)


def _fake_mode(values: Any) -> Any:
    for leaf in _leaves(values):
        mode = getattr(leaf, "fake_mode", None)
        if mode is not None:
            return mode
    return None


def _leaves(values: Any) -> Iterable[Any]:
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            yield from _leaves(value)
    else:
        yield values
