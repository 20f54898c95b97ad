"""NORMAL -> RAISED: norms, activations, rotary embedding, attention and cache updates become single ops."""

from __future__ import annotations

from dataclasses import replace

from qpass.graph.program import Program
from qpass.graph.rewrite import apply_rules
from qpass.patterns import rules


def raise_ops(program: Program) -> Program:
    """Apply every pattern of ``qpass.patterns``."""
    return replace(apply_rules(program, rules(), by="raise"), stage="RAISED")
