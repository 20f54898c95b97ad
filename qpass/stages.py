"""The stages, and for each, what a legal graph is. Checked at the door out of every pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from qpass.errors import VerifyError
from qpass.graph.integer_only import float_reason
from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.graph.verify import verify
from qpass.ops import ATTENTIONS, grouped_linear

aten = torch.ops.aten

STAGES = ("CAPTURED", "NORMAL", "RAISED", "PLANNED", "SOLVED", "QUANTISED", "FUSED", "INTEGER", "LOWERED")
"""In pipeline order. A recipe goes by QUANTISED and FUSED, or, if it is integer-only, by INTEGER."""


def check(program: Program) -> Program:
    """Return ``program``; raise VerifyError if its graph is not legal for its stage."""
    verify(program)
    for node in program.graph.nodes:
        if node.op == "call_function":
            reason = _LEGAL[program.stage](node)
            if reason:
                raise VerifyError(f"{reason} in a program of stage {program.stage}", where=f"%{node.meta['name']}")
    return program


def _any(node: fx.Node) -> str | None:
    return None


def _is_param(arg: object) -> bool:
    return isinstance(arg, fx.Node) and arg.op == "get_attr"


def _normal(node: fx.Node) -> str | None:
    name = op_name(node.target)
    if name in ("alias", "detach", "lift_fresh_copy") or name.startswith("_assert"):
        return f"the op {name}"
    if node.target is aten.addmm.default and _is_param(node.args[2]):
        return "a linear that is not spelled aten.linear"
    return None


def _planned(node: fx.Node) -> str | None:
    if node.target is aten.linear.default and "plan" not in node.meta:
        return "a linear without a format or an explicit keep"
    if node.target is grouped_linear and "experts" not in node.meta:
        return "a linear of experts without a format or an explicit keep"
    if node.target in ATTENTIONS and "attention" not in node.meta:
        return "an attention without a format or an explicit keep"
    return _normal(node)


def _quantised(node: fx.Node) -> str | None:
    if node.target is aten.linear.default and node.meta["plan"].scheme is not None and _is_param(node.args[1]):
        return "a float linear that the plan gives a format"
    if node.target is grouped_linear and node.meta["experts"].scheme is not None and _is_param(node.args[1]):
        return "a float linear of experts that the plan gives a format"
    if node.target in ATTENTIONS and node.meta["attention"].scheme is not None and not _rounded(node):
        return "a float operand of an attention that the plan gives a format"
    return _normal(node)


def _rounded(node: fx.Node) -> bool:
    formats = node.meta["attention"].scheme.formats
    return "p" not in formats and all("rounds" in node.args["qkv".index(operand)].meta for operand in formats)  # type: ignore[union-attr]


def _fused(node: fx.Node) -> str | None:
    name = op_name(node.target)
    stray = name.startswith("torchao.") or name in ("qpass.dequantize_input", "qpass.dequantize_weight")
    return f"a stray {name}" if stray else _normal(node)


def _lowered(node: fx.Node) -> str | None:
    return f"the dialect op {op_name(node.target)}" if op_name(node.target).startswith("qpass.") else None


_LEGAL: dict[str, Callable[[fx.Node], str | None]] = {
    "CAPTURED": _any, "NORMAL": _normal, "RAISED": _normal, "PLANNED": _planned, "SOLVED": _planned,
    "QUANTISED": _quantised, "FUSED": _fused, "INTEGER": float_reason, "LOWERED": _lowered,
}  # fmt: skip
