"""Rules of ``integerise``: one file a family of ops, each ``(state, node) -> value``. ``RULES`` has them by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from qpass.passes.integer import activation, attention, embedding, linear, movement, norm
from qpass.passes.integer.state import State, Value

Rule = Callable[[State, fx.Node], Value]

RULES: Mapping[Any, Rule] = {
    **activation.RULES, **attention.RULES, **embedding.RULES, **linear.RULES, **movement.RULES, **norm.RULES,
}  # fmt: skip
