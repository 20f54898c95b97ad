"""Which linears of a graph read which value, and in which block they are: from names and module scopes in the graph."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import fx

from qpass.graph.program import Program
from qpass.graph.values import scopes
from qpass.passes.plan import names

aten = torch.ops.aten
_NUMBERED = re.compile(r"(?:(.*?)\.)?(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Reading:
    """One value and the linears that read it.

    Attributes:
        value: its name in the graph.
        linears: names of the modules, in graph order.
        block: of the first of them, such as ``model.layers.3``; empty where it is in none.
        channels: size of the last dimension.
    """

    value: str
    linears: tuple[str, ...]
    block: str
    channels: int

    @property
    def label(self) -> str:
        """The linears in few words: within the block, what they share once: ``self_attn.{q,k,v}_proj``."""
        inside = [name.removeprefix(f"{self.block}.") if self.block else name for name in self.linears]
        return shared(list(dict.fromkeys(inside)))


def readings(program: Program) -> list[Reading]:
    """The inputs of all linears with a weight of their own, in graph order. ``program``: NORMAL or RAISED."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in program.nodes(aten.linear.default):
        source, weight = node.args[:2]
        if isinstance(source, fx.Node) and isinstance(weight, fx.Node) and weight.op == "get_attr":
            found.setdefault(source, []).append(node)
    stack = _stack(program)
    return [
        Reading(str(source.meta["name"]), tuple(names(node)[-1].removesuffix(".weight") for node in linears),
                _block(linears[0], stack), int(source.meta["val"].shape[-1]))
        for source, linears in found.items()
    ]  # fmt: skip


def some_blocks(found: list[Reading]) -> list[str]:
    """First, middle and last block in graph order; all readings are one block, named '', where there are none."""
    blocks = list(dict.fromkeys(reading.block for reading in found if reading.block)) or [""]
    return [blocks[index] for index in sorted({0, len(blocks) // 2, len(blocks) - 1})]


def _place(node: fx.Node) -> tuple[str, str] | None:
    """(stack, block) of a node: its outermost module that is a member of a numbered list."""
    path = re.sub(r"@\d+", "", scopes(node)[-1]) if scopes(node) else ""
    match = _NUMBERED.match(path)
    return (match[1] or "", match[0]) if match else None


def _stack(program: Program) -> str | None:
    """The numbered list of modules that holds most linears."""
    places = [_place(node) for node in program.nodes(aten.linear.default)]
    counts = Counter(place[0] for place in places if place)
    return counts.most_common(1)[0][0] if counts else None


def _block(node: fx.Node, stack: str | None) -> str:
    place = _place(node)
    return place[1] if place and place[0] == stack else ""


def shared(words: list[str]) -> str:
    """Several names with their common beginning and end once: ``mlp.{gate,up}_proj``."""
    if len(words) < 2:
        return "".join(words)
    start = _common(words)
    start = start[: start.rfind(".") + 1]
    rest = [word[len(start) :] for word in words]
    end = _common([word[::-1] for word in rest])[::-1]
    end = end[end.find("_") :] if "_" in end else ""
    middle = [word[: len(word) - len(end)] for word in rest]
    return f"{start}{{{','.join(middle)}}}{end}" if all(middle) else f"{start}{{{','.join(rest)}}}"


def _common(words: list[str]) -> str:
    length = 0
    for letters in zip(*words):
        if len(set(letters)) > 1:
            break
        length += 1
    return words[0][:length]
