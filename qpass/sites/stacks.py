"""Which nodes belong to which repeated block: from the modules that made them, or from what repeats in the graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from qpass.graph.program import Program
from qpass.graph.values import op_name, scopes

aten = torch.ops.aten

_MEMBER = re.compile(r"(?:(.*)\.)?(\d+)(@\d+)?")
Found = tuple[list[str], dict[fx.Node, int]]
"""Names of the blocks in order, and the block of each call that has one."""


def by_modules(program: Program) -> Found:
    """Members of the outermost numbered containers of which at least two are alike.

    A container with a single member counts where it holds several linears and no container repeats.
    """
    inside: dict[str, dict[str, list[fx.Node]]] = {}
    for node in program.nodes():
        for path in scopes(node):
            member = _MEMBER.fullmatch(path)
            if member:
                inside.setdefault(member[1] or "", {}).setdefault(path, []).append(node)
    repeated = [name for name, members in inside.items() if _repeats(list(members.values()))]
    single = [name for name, members in inside.items() if len(members) == 1 and _linears(*members.values()) > 1]
    stacks: list[str] = []
    for name in sorted(repeated or single, key=lambda name: name.count(".") if name else -1):
        if not any(_within(name, path) for stack in stacks for path in inside[stack]):
            stacks.append(name)
    first = {node: number for number, node in enumerate(program.nodes())}
    members = [(path, nodes) for stack in stacks for path, nodes in inside[stack].items() if _linears(nodes)]
    members.sort(key=lambda member: first[member[1][0]])
    return [path for path, _ in members], {node: n for n, (_, nodes) in enumerate(members) for node in nodes}


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _repeats(members: Sequence[Sequence[fx.Node]]) -> bool:
    counts = Counter(_signature(nodes) for nodes in members if _linears(nodes))
    return max(counts.values(), default=0) > 1


def _linears(*members: Sequence[fx.Node]) -> int:
    return sum(node.target is aten.linear.default for nodes in members for node in nodes)


def _signature(nodes: Sequence[fx.Node]) -> tuple[tuple[str, int], ...]:
    """How often each op occurs, and each shape of weight; order and constants may differ."""
    return tuple(sorted(Counter(_word(node) for node in nodes).items()))


def _word(node: fx.Node) -> str:
    shapes = [tuple(source.meta["val"].shape) for source in node.all_input_nodes if source.op == "get_attr"]
    return f"{op_name(node.target)} {shapes}" if node.target is aten.linear.default else op_name(node.target)


# ------------------------------------------------------------------------------------------------------ structure


def by_structure(program: Program) -> Found:
    """The longest run of equal stretches between cuts; a cut is behind a value that alone goes on from there."""
    calls = list(program.nodes())
    carried = _carried(program, calls)
    last = {node: max((number for number, user in enumerate(calls) if user in node.users), default=-1)
            for node in carried}  # fmt: skip
    stretches: list[list[fx.Node]] = [[]]
    live: set[fx.Node] = set()
    for number, node in enumerate(calls):
        stretches[-1].append(node)
        live = {value for value in live if last[value] > number}
        if node in carried and last[node] > number:
            live.add(node)
        if live == {node}:
            stretches.append([])
    words = [_signature([node for node in stretch if node.target is aten.linear.default]) for stretch in stretches]
    start, period, times = _longest_run(words, [_linears(stretch) for stretch in stretches])
    own: dict[fx.Node, int] = {}
    for block in range(times):
        for stretch in stretches[start + block * period : start + (block + 1) * period]:
            own |= {node: block for node in stretch if node in carried}
    return [f"block.{number}" for number in range(times)], own


def _carried(program: Program, calls: Sequence[fx.Node]) -> set[fx.Node]:
    """Tensors of floats that follow from a weight of the model: what flows from block to block."""
    found: set[fx.Node] = set()
    for node in calls:
        value = node.meta.get("val")
        sources = node.all_input_nodes
        made = any(source in found or (source.op == "get_attr" and source.target in program.weights)
                   for source in sources)  # fmt: skip
        if made and (not isinstance(value, Tensor) or value.is_floating_point()):
            found.add(node)
    return found


def _longest_run(words: Sequence[object], linears: Sequence[int]) -> tuple[int, int, int]:
    """(start, period, times) of the run of equal periods, at least two, that holds most linears; (0, 1, 0) for none.

    Of equal runs the one with the shortest period, then the earliest, wins.
    """
    best, found = 0, (0, 1, 0)
    for period in range(1, len(words) // 2 + 1):
        for start in range(len(words) - 2 * period + 1):
            times = 1
            while words[start + times * period : start + (times + 1) * period] == words[start : start + period]:
                times += 1
            covered: int = sum(linears[start : start + times * period])
            if times > 1 and covered > best and any(linears[start : start + period]):
                best, found = covered, (start, period, times)
    return found
