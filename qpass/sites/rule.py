"""How a rule of scale flow is registered: which ops it speaks for, and the identity that makes it exact.

A rule takes the walk, the node, and the call's arguments, in which activations are ``Flow`` and parameters ``Weight``.
It adds equations to ``walk.system`` and returns the result's ``Flow``. The identity is a sympy equation in which s, t
are positive and x, y, w, b real; a test proves each (``tests/sites/test_identities.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FlowRule:
    """A registered rule.

    Args:
        apply: ``(walk, node, *args, **kwargs) -> Flow``.
        identity: why it is exact, as ``left = right``.
        always: it is asked even where no input can carry a factor, as it makes new ones.
    """

    apply: Callable[..., Any]
    identity: str
    always: bool


RULES: dict[str, FlowRule] = {}
"""Op name, as ``qpass.graph.values.op_name`` gives it -> its rule."""


def rule(*ops: str, identity: str, always: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a rule for ops by name."""

    def wrap(apply: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op in RULES:
                raise ValueError(f"two rules for {op}")
            RULES[op] = FlowRule(apply, identity, always)
        return apply

    return wrap
