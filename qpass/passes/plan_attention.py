"""The part of planning that is about attention: each gets a scheme, or a reason to stay in float."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from qpass.errors import RecipeError
from qpass.formats import AttentionScheme, nearest
from qpass.formats.attention import OPERANDS
from qpass.graph.program import Program
from qpass.graph.values import scopes
from qpass.ops import ATTENTIONS
from qpass.recipe import AttentionLine, Recipe

_PLAIN = torch.ops.aten.scaled_dot_product_attention.default
COMPUTED = "reference: operands are rounded, attention computes in float"


@dataclass(frozen=True)
class AttentionChoice:
    """What the plan decided for one attention. ``scheme`` None: it stays in float, for ``reason`` if any was asked.

    ``coded``: which of keys and values the cache holds as codes. ``computed``: what computes it, for a table.
    """

    scheme: AttentionScheme | None = None
    reason: str = ""
    coded: tuple[str, ...] = ()
    computed: str = COMPUTED

    def __str__(self) -> str:
        if self.scheme is not None:
            return f"{self.scheme} -> {'codes in the cache' if self.coded else 'reference'}"
        return f"keep: {self.reason}" if self.reason else ""


def scheme_of(node: fx.Node) -> AttentionScheme | None:
    """The scheme that the plan gave an attention; None for none, and for every other node."""
    choice = node.meta.get("attention")
    return choice.scheme if isinstance(choice, AttentionChoice) else None


def names(node: fx.Node) -> list[str]:
    """The names a recipe may call an attention by: the module that attends, and the value."""
    module = [re.sub("@[0-9]+", "", scopes(node)[-1])] if scopes(node) else []
    return [*module, str(node.meta["name"])]


def plan_attention(graph: fx.Graph, recipe: Recipe) -> None:
    """Put an ``AttentionChoice`` on every attention of a graph.

    Raises:
        RecipeError: a line that matches nothing or is never reached; a group that is wider than a head.
    """
    found = _attentions(graph)
    for line, why in idle_lines(graph, recipe).items():
        every = list(dict.fromkeys(names(node)[0] for node in found))
        close = nearest(line.glob.replace("*", ""), every) or f"name one of {', '.join(every[:3])}, ..."
        fix = close if every else "remove it: attention was not recognized in this model (python -m qpass show)"
        fix = fix if not why.startswith("lines above") else "move it up or remove it"
        what = f"the attention line {line.glob!r} does nothing: {why}"
        raise RecipeError(what, where=f"recipe {recipe.name}", fix=fix)
    for node in found:
        node.meta["attention"] = _choose(node, recipe)


def idle_lines(graph: fx.Graph, recipe: Recipe) -> dict[AttentionLine, str]:
    """The lines of ``attention`` that no attention takes, and why."""
    found = _attentions(graph)
    used = {line for node in found if (line := _line(node, recipe))}
    return {line: _why_idle(line, found) for line in recipe.attention if line not in used}


def _why_idle(line: AttentionLine, found: Sequence[fx.Node]) -> str:
    if any(line.matches(names(node)) for node in found):
        return "lines above it match all it matches"
    return "it matches no attention" if found else "the graph has no attention"


def _attentions(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target in (*ATTENTIONS, _PLAIN)]


def _line(node: fx.Node, recipe: Recipe) -> AttentionLine | None:
    return next((line for line in recipe.attention if line.matches(names(node))), None)


def _choose(node: fx.Node, recipe: Recipe) -> AttentionChoice:
    line = _line(node, recipe)
    if line is None:
        return AttentionChoice(None, "no line of the recipe matches it" if recipe.attention else "")
    if line.scheme is None:
        return AttentionChoice(None, f"the recipe says so ({line.glob})")
    if node.target not in ATTENTIONS:
        return AttentionChoice(None, f"its query has {node.args[0].meta['val'].ndim} dimensions, not four")  # type: ignore[union-attr]
    for operand, x in zip(OPERANDS, node.args[:3]):
        fmt, width = getattr(line.scheme, operand), x.meta["val"].shape[-1]  # type: ignore[union-attr]
        if fmt is not None and fmt.group > width:
            raise RecipeError(f"a group of {fmt.group} is wider than a head of {width}", fix="use token, or less",
                              where=f"recipe {recipe.name}, attention line {line.glob!r}, {operand}")  # fmt: skip
    return AttentionChoice(line.scheme)


def choices(program: Program) -> tuple[tuple[str, AttentionChoice], ...]:
    """Name and choice of each attention of a PLANNED program."""
    return tuple((names(node)[0], node.meta["attention"]) for node in program.nodes() if "attention" in node.meta)


def attention_rows(found: Sequence[tuple[str, AttentionChoice]]) -> list[tuple[str, ...]]:
    """Rows of ``TITLES`` for a plan; none where the recipe is silent about attention."""
    rows = []
    for name, choice in found:
        formats = choice.scheme.as_data() if choice.scheme else {}
        cells = (formats.get(operand, "keep") for operand in OPERANDS)
        rows.append((name, *cells, choice.computed if choice.scheme else choice.reason))
    return rows if any(choice.scheme or choice.reason for _, choice in found) else []


TITLES = ("attention", *OPERANDS, "computed by, or why not")
