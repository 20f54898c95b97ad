"""Rules of ``integerise``: one file a family of ops, each ``(state, node) -> value``. ``RULES`` has them by op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from qpass.passes.integer import activation, attention, channels, embedding, linear, movement, norm, scale
from qpass.passes.integer.state import State, Value

Rule = Callable[[State, fx.Node], Value]

RULES: Mapping[Any, Rule] = {
    **activation.RULES, **attention.RULES, **channels.RULES, **embedding.RULES, **linear.RULES, **movement.RULES,
    **norm.RULES, **scale.RULES,
}  # fmt: skip
