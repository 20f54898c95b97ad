"""Each rule of scale flow states why it is exact; sympy proves it."""

from __future__ import annotations

from itertools import product

import pytest
import sympy

from qpass.sites import rules  # noqa: F401
from qpass.sites.rule import RULES

SYMBOLS = {name: sympy.Symbol(name, positive=True) for name in "st"}
SYMBOLS |= {name: sympy.Symbol(name, real=True) for name in ("x", "y", "w", "b")} | {"h": sympy.Function("h")}
P, Q = sympy.symbols("p q", positive=True)
X, Y = SYMBOLS["x"], SYMBOLS["y"]


@pytest.mark.parametrize("identity", sorted({rule.identity for rule in RULES.values()}))
def test_identity_holds(identity: str) -> None:
    left, right = (sympy.sympify(side, locals=SYMBOLS) for side in identity.split("="))
    gap = left - right
    kinks = gap.has(sympy.Max) or gap.has(sympy.Min) or gap.has(sympy.Abs) or gap.has(sympy.sign)
    cases = product((P, -P), (lambda x: x + Q, lambda x: x - Q)) if kinks else [(X, lambda x: Y)]
    for x, y in cases:  # a kink is proved on each side of it
        assert sympy.simplify(sympy.expand(gap.subs({Y: y(x), X: x}, simultaneous=True))) == 0


def test_a_wrong_identity_is_seen() -> None:
    left, right = (sympy.sympify(side, locals=SYMBOLS) for side in ("h(s*x)", "s*h(x)"))
    assert sympy.simplify(left - right) != 0


def test_every_rule_says_its_formula() -> None:
    assert not [name for name, rule in RULES.items() if not (rule.apply.__doc__ or "").strip()]
