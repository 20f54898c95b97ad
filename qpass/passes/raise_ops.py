"""NORMAL -> RAISED: norms, activations, rotary embedding, attention, cache updates and experts become single ops."""

from __future__ import annotations

from dataclasses import replace

from qpass.graph.program import Program
from qpass.graph.rewrite import apply_rules
from qpass.passes.raise_experts import raise_experts
from qpass.patterns import rules


def raise_ops(program: Program) -> Program:
    """Apply every pattern of ``qpass.patterns``, and ``raise_experts``."""
    return replace(apply_rules(raise_experts(program), rules(), by="raise"), stage="RAISED")
