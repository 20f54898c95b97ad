"""What a learning method may act on in one block: its linears, its sites, its parameters. No tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from qpass.formats import AttentionScheme, Scheme
from qpass.graph.program import Program
from qpass.sites.blocks import Blocks, Segment
from qpass.sites.roles import meets_attention
from qpass.sites.site import Site

aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """One block, to be looked at.

    Args:
        program: PLANNED.
        segment: the block.
        linears: value name of each linear that has a scheme -> name of its weight, scheme.
        sites: those whose parameters and activations are all in this block.
        private: parameters of the model that only this block reads.
        attentions: value name of each attention that has a scheme -> that scheme.
        attended: sites all of whose parameters meet such an attention before the next linear: q with k, v → o.
    """

    program: Program
    segment: Segment
    linears: Mapping[str, tuple[str, Scheme]]
    sites: tuple[Site, ...]
    private: frozenset[str]
    attentions: Mapping[str, AttentionScheme] = field(default_factory=dict)
    attended: frozenset[str] = frozenset()

    @property
    def weights(self) -> dict[str, Scheme]:
        """Weights with a scheme that no other block reads and no earlier method has chosen codes or scales for."""
        chosen = self.program.params
        return {weight: scheme for weight, scheme in self.linears.values()
                if weight in self.private and f"{weight}.codes" not in chosen and f"{weight}.scale" not in chosen}


def views(program: Program, blocks: Blocks, sites: Sequence[Site]) -> list[View]:
    """A view of each block."""
    readers: dict[str, set[int]] = {}
    nodes = {node.meta["name"]: node for node in program.graph.nodes if node.op != "output"}
    for node in nodes.values():
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                readers.setdefault(str(source.target), set()).add(blocks.level[node.meta["name"]])
    owned: dict[int, list[Site]] = {}
    for site in sites:
        level = _level(site, blocks)
        if level is not None:
            owned.setdefault(level, []).append(site)
    return [
        View(program, segment, _linears(segment, nodes), tuple(owned.get(number, ())),
             frozenset(name for name in segment.params if name in program.weights and readers[name] == {number}),
             _attentions(segment, nodes), _attended(owned.get(number, ()), nodes))
        for number, segment in enumerate(blocks.blocks)
    ]  # fmt: skip


def _linears(segment: Segment, nodes: Mapping[str, fx.Node]) -> dict[str, tuple[str, Scheme]]:
    found = {}
    for name in segment.nodes:
        scheme = getattr(nodes[name].meta.get("plan"), "scheme", None)
        if scheme is not None:
            weight = nodes[name].args[1]
            assert isinstance(weight, fx.Node)
            found[name] = (str(weight.target), scheme)
    return found


def _attentions(segment: Segment, nodes: Mapping[str, fx.Node]) -> dict[str, AttentionScheme]:
    schemes = {name: getattr(nodes[name].meta.get("attention"), "scheme", None) for name in segment.nodes}
    return {name: scheme for name, scheme in schemes.items() if scheme is not None}


def _attended(sites: Sequence[Site], nodes: Mapping[str, fx.Node]) -> frozenset[str]:
    planned = {node for node in nodes.values() if getattr(node.meta.get("attention"), "scheme", None)}
    if not planned:
        return frozenset()
    return frozenset(site.name for site in sites if all(meets_attention(nodes[axis.node]) for axis in site.axes))


def _level(site: Site, blocks: Blocks) -> int | None:
    """The block that all of a site is in; None where it touches something outside of blocks, or several."""
    names = {axis.node for axis in site.axes} | {item.node for item in site.smooths}
    levels = {blocks.level[name] for name in names if name in blocks.level}
    if len(levels) != 1:
        return None
    (level,) = levels
    return level if 0 <= level < len(blocks.blocks) else None
