"""Is this program integer-only? Read off its graph: every value, every parameter, every literal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import InputError, VerifyError
from qpass.graph.program import Program
from qpass.graph.values import op_name

FLOAT_OPS = frozenset({
    "acos", "asin", "atan", "atan2", "cos", "cosh", "div", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "gelu",
    "layer_norm", "linear", "log", "log10", "log1p", "log2", "log_softmax", "mean", "mish", "native_layer_norm", "norm",
    "pow", "reciprocal", "rms_norm", "rsqrt", "scaled_dot_product_attention", "sigmoid", "silu", "sin", "sinh",
    "softmax", "softplus", "sqrt", "std", "tan", "tanh", "true_divide", "var",
})  # fmt: skip
"""Ops that compute in float, or may: none of them is an integer operator, whatever the dtype of its result."""


def verify_integer_only(program: Program) -> Program:
    """Return ``program`` if every value from its inputs to its results, weights included, is an integer or a bool.

    Raises:
        InputError: something else than a program.
        VerifyError: naming the first float value, parameter or literal, or an op from ``FLOAT_OPS``.
    """
    if not isinstance(program, Program):
        raise InputError(f"a {type(program).__name__} is no program",
                         fix='pass qpass.trace(model, recipe)["LOWERED"]')  # fmt: skip
    for node in program.graph.nodes:
        if node.op == "get_attr" and not _integer(program.like(str(node.target)).dtype):
            what = f"the parameter is {program.like(str(node.target)).dtype}"
            raise VerifyError(f"{what} in an integer-only program", where=str(node.target))
        inner = getattr(node.target, "graph", None)  # a region: what it is made of counts
        reason = next(filter(None, map(float_reason, [node, *(inner.nodes if inner is not None else ())])), None)
        if reason:
            raise VerifyError(f"{reason} in an integer-only program", where=f"%{node.meta.get('name', node.name)}")
    return program


def float_reason(node: fx.Node) -> str | None:
    """What of a node is float, in words; None if nothing is."""
    for value in _leaves(node.meta.get("val")):
        if isinstance(value, Tensor) and not _integer(value.dtype):
            return f"a value of dtype {value.dtype}"
        if isinstance(value, float | torch.SymFloat):
            return "a float"
    if node.op != "call_function":
        return None
    if op_name(node.target).strip("_") in FLOAT_OPS and not _floors(node):
        return f"the float op {op_name(node.target)}"
    for literal in _leaves([*node.args, *node.kwargs.values()]):
        if isinstance(literal, float | complex | torch.SymFloat):
            return f"the literal {literal}"
        if isinstance(literal, torch.dtype) and not _integer(literal):
            return f"the dtype {literal}"
    return None


def _integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _floors(node: fx.Node) -> bool:
    """Whether a division is that of integers, rounded down."""
    return op_name(node.target) == "div" and node.kwargs.get("rounding_mode") == "floor"


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]
