"""Rule: a pattern and what it becomes, both written as ordinary Python functions of the same tensors.

The pattern function is traced into a small graph (``qpass.capture.pattern``) with the same normalisation as a model.
Tensor arguments are holes that bind any value; keyword arguments are named literals that bind any number; every other
literal in the pattern must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class Pattern:
    """One traced spelling of a rule: its graph, the node to anchor at, and which literals are holes.

    ``typed``: the spelling casts, so the values between its holes and its root must have the traced types.
    """

    graph: fx.Graph
    root: fx.Node
    holes: tuple[str, ...]
    literals: Mapping[Any, str]
    typed: bool = False


@dataclass(frozen=True)
class Rule:
    """``patterns() -> becomes(bindings)``; exact in the numbers.

    Attributes:
        name: printed behind each line that the rule made.
        patterns: traces and caches the spellings; called on first use.
        becomes: takes the bound values by name, returns the expression that replaces the match.
        where: an extra condition on the bound values: None if it holds, else the reason in words.
        anchors: names of ops, at least one of which every spelling holds.
    """

    name: str
    doc: str
    patterns: Callable[[], tuple[Pattern, ...]]
    becomes: Callable[..., Any]
    where: Callable[[Mapping[str, Any]], str | None] | None = None
    anchors: tuple[str, ...] = ()
