"""FUSED -> FUSED: linears that read the same values in one scheme become one, whose outputs are parts of a row.

before   %q = linear(%x, q.codes, q.scale, ...); %k = linear(%x, k.codes, k.scale, ...)
after    %q+k = linear(%x, q+k.codes, q+k.scale, ...); %q = %q+k[..., :256]; %k = %q+k[..., 256:]

An output channel is computed from its own codes, scales and bias, so no value changes; a GPU launches one kernel where
it launched three, and reads the input once. Only kernels that say so (``Kernel.merges``) are given wider weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.formats import Format
from qpass.graph.program import Change, Derived, Param, Program, copy_graph
from qpass.graph.rewrite import infer
from qpass.graph.values import assign_names
from qpass.lowering import Case

aten = torch.ops.aten

_PARTS = ("codes", "scale", "zero", "outer")


@dataclass(frozen=True)
class Group:
    """Linears that read the same values, in graph order. ``apart``: why they stay as they are; empty if they merge."""

    nodes: tuple[fx.Node, ...]
    apart: str = ""

    @property
    def name(self) -> str:
        """``layers.0.self_attn.q_proj+k_proj+v_proj``."""
        return merged_name([node.meta["plan"].weight.removesuffix(".weight") for node in self.nodes])


def groups(graph: fx.Graph) -> list[Group]:
    """What reads the same values with kernels that merge, of a PLANNED or a FUSED graph."""
    readers: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        if _may(node):
            readers.setdefault(node.args[: _inputs(node)], []).append(node)
    found: list[Group] = []
    for nodes in readers.values():
        alike: dict[Any, list[fx.Node]] = {}
        for node in nodes:
            alike.setdefault(_kind(node), []).append(node)
        found += [Group(tuple(same), _refusal(same)) for same in alike.values() if len(same) > 1]
        if len(alike) > 1:
            found.append(Group(tuple(nodes), f"they ask for {len(alike)} formats"))
    return found


def merge_lines(graph: fx.Graph) -> list[tuple[str, str]]:
    """For the plan: what is merged, or stays apart, and why."""
    lines = []
    for group in groups(graph):
        rows = sum(node.meta["plan"].shape[0] for node in group.nodes)
        lines.append((group.name, f"apart: {group.apart}" if group.apart else f"one linear of {rows} outputs"))
    return lines


def merge(program: Program) -> Program:
    """Merge what ``groups`` finds; nothing changes for a target whose kernels do not merge."""
    graph, _ = copy_graph(program.graph)
    params: dict[str, Param] = dict(program.params)
    history, log = dict(program.history), list(program.log)
    views: list[fx.Node] = []
    for group in [found for found in groups(graph) if not found.apart]:
        added, made = _merge(graph, group, replace(program, params=params))
        params.update(added)
        history.update({name: ("parts of several weights, one above the other",) for name in added})
        log.append(Change("merge", group.name, f"{len(group.nodes)} linears -> 1"))
        views += made
    if not views:
        return program
    _settle(graph, views)
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, params=params, history=history, log=tuple(log))


def merged_name(names: Sequence[str]) -> str:
    """What the names have in common, then what is each one's own."""
    split = [name.split(".") for name in names]
    same = 0
    while same < min(map(len, split)) - 1 and len({name[same] for name in split}) == 1:
        same += 1
    return ".".join([*split[0][:same], "+".join(".".join(name[same:]) for name in split)])


def _may(node: fx.Node) -> bool:
    choice = node.meta.get("plan")
    if choice is None or choice.kernel is None or not choice.kernel.merges or choice.reason:
        return False
    return node.target in (aten.linear.default, ops.linear, ops.weight_only_linear)


def _inputs(node: fx.Node) -> int:
    return 3 if node.target is ops.linear else 1


def _kind(node: fx.Node) -> Any:
    """Linears of one kind compute the same thing with other weights."""
    choice = node.meta["plan"]
    return choice.scheme.input, choice.scheme.weight.plain, choice.kernel.name, node.meta["val"].dtype


def _bias(node: fx.Node) -> Any:
    at = 2 if node.target is aten.linear.default else _inputs(node) + 4
    return node.args[at] if len(node.args) > at else None


def _refusal(nodes: Sequence[fx.Node]) -> str:
    """Why linears of one kind stay apart, in words; empty if they merge."""
    first = nodes[0].meta["plan"]
    if any(node.meta["plan"].branch for node in nodes):
        return "a low-rank branch goes with its own linear, in one kernel"
    fmt = first.scheme.weight.plain
    rows = [node.meta["plan"].shape[0] for node in nodes]
    if reason := _scales_refuse(fmt, rows):
        return reason
    if any(len(node.args[_weight(node)].users) > 1 for node in nodes):  # type: ignore[union-attr]
        return "one of the weights is read elsewhere too, and would be kept twice"
    biases = [bias for node in nodes if (bias := _bias(node)) is not None]
    if len({bias.meta["val"].dtype for bias in biases}) > 1 or any(bias.op != "get_attr" for bias in biases):
        return "their biases are not parameters of one type"
    case = Case(sum(rows), first.shape[1], replace(first.scheme, weight=fmt), nodes[0].meta["val"].dtype)
    return first.kernel.refuses(case) or ""


def _weight(node: fx.Node) -> int:
    return 1 if node.target is aten.linear.default else _inputs(node)


def _scales_refuse(fmt: Format, rows: Sequence[int]) -> str:
    if fmt.granularity == "tensor" or fmt.scale_kind.outer == "tensor":
        return "each weight has one scale of its own"
    if fmt.rows and any(count % fmt.rows for count in rows[:-1]):
        return f"blocks of {fmt.rows} rows would reach over two weights"
    return ""


def _merge(graph: fx.Graph, group: Group, program: Program) -> tuple[dict[str, Derived], list[fx.Node]]:
    """Put one linear and its parts in place of a group; the parameters that it needs, and the parts."""
    first, count = group.nodes[0], _inputs(group.nodes[0])
    name, rows = f"{group.name}.weight", [node.meta["plan"].shape[0] for node in group.nodes]
    params: dict[str, Derived] = {}
    for at, part in enumerate(_PARTS):
        if first.args[count + at] is not None:
            sources = [str(node.args[count + at].target) for node in group.nodes]  # type: ignore[union-attr]
            params[f"{name}.{part}"] = _stacked(sources, program)
    biases = [_bias(node) for node in group.nodes]
    if any(biases):
        params[f"{group.name}.bias"] = _stacked_biases(biases, rows, program)
    with graph.inserting_before(first):
        read = {key: _reader(graph, first, key, param) for key, param in params.items()}
        parts = [read.get(f"{name}.{part}") for part in _PARTS]
        rest = first.args[count + len(_PARTS) + 1 :]
        args = (*first.args[:count], *parts, read.get(f"{group.name}.bias"), *rest)
        made = graph.call_function(first.target, args)  # type: ignore[arg-type]
        shape = (sum(rows), first.meta["plan"].shape[1])
        before = sum(node.meta["plan"].bytes_before for node in group.nodes)
        choice = replace(first.meta["plan"], weight=name, shape=shape, bytes_before=before, branch=(), notes=())
        made.meta.update(name=group.name, scopes=first.meta.get("scopes", ()), rule="merge", plan=choice)
        value = first.meta["val"]
        with value.fake_mode:  # known: torch 2.11 cannot run a linear of more dimensions on symbols
            made.meta["val"] = value.new_empty((*value.shape[:-1], sum(rows)))
        views = _views(graph, made, rows)
    for node, view in zip(group.nodes, views):
        view.meta.update({key: node.meta[key] for key in ("name", "scopes") if key in node.meta})
        node.replace_all_uses_with(view)
        graph.erase_node(node)
    return params, views


def _views(graph: fx.Graph, made: fx.Node, rows: Sequence[int]) -> list[fx.Node]:
    found, start = [], 0
    for count in rows:
        found.append(graph.call_function(aten.slice.Tensor, (made, -1, start, start + count)))
        infer(found[-1])
        start += count
    return found


def _reader(graph: fx.Graph, like: fx.Node, name: str, param: Derived) -> fx.Node:
    made = graph.create_node("get_attr", name)
    value = like.meta["val"]
    with value.fake_mode:
        kind = torch.empty(param.like.shape, dtype=param.like.dtype, device=value.device)
    made.meta.update(name=name, val=kind)
    return made


def _stacked(sources: Sequence[str], program: Program) -> Derived:
    like = torch.cat([program.like(name).to("meta") for name in sources])
    return Derived(tuple(sources), _stack, like)


def _stack(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _stacked_biases(biases: Sequence[Any], rows: Sequence[int], program: Program) -> Derived:
    names = [str(bias.target) for bias in biases if bias is not None]
    kind = program.like(names[0]).dtype
    made = functools.partial(_stack_biases, rows=tuple(rows), present=tuple(bias is not None for bias in biases))
    return Derived(tuple(names), made, torch.empty(sum(rows), dtype=kind, device="meta"))


def _stack_biases(*given: Tensor, rows: tuple[int, ...], present: tuple[bool, ...]) -> Tensor:
    """Where a linear has no bias, -0.0: adding it changes no value, not even the sign of a zero."""
    left = iter(given)
    parts: Iterable[Tensor] = (next(left) if has else torch.full((count,), -0.0, dtype=given[0].dtype,
                               device=given[0].device) for count, has in zip(rows, present))  # fmt: skip
    return torch.cat(tuple(parts))


def _settle(graph: fx.Graph, views: Sequence[fx.Node]) -> None:
    """Types again from the views on, until strides are what they were: a part of a row is not contiguous."""
    changed = set(views)
    for node in graph.nodes:
        if node.op != "call_function" or node in changed or changed.isdisjoint(node.all_input_nodes):
            continue
        before = _strides(node.meta["val"])
        infer(node)
        if _strides(node.meta["val"]) != before:
            changed.add(node)


def _strides(value: Any) -> list[str]:
    values = value if isinstance(value, tuple | list) else [value]
    return [str(one.stride()) if isinstance(one, Tensor) else str(one) for one in values]
