"""Gated activations: SwiGLU, GeGLU and their kin.

    y = f(gate) · up

before   %act = silu(%gate); %mul = mul(%act, %up)
after    %mul = qpass.gated(%gate, %up, 'silu')
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.graph.rule import Rule
from qpass.ops.activation import KINDS

ANCHORS = {
    "silu": ("silu",), "gelu": ("gelu",), "gelu_tanh": ("gelu", "tanh"), "quick_gelu": ("sigmoid",), "relu": ("relu",),
    "relu_squared": ("relu",),
}  # fmt: skip


def _rule(kind: str, function: Callable[[Tensor], Tensor]) -> Rule:
    def gated(gate: Tensor, up: Tensor) -> Tensor:
        return function(gate) * up

    def becomes(gate: Any, up: Any) -> Any:
        return ops.gated(gate, up, kind)

    gated.__name__ = f"gated_{kind}"
    return rule(*ANCHORS[kind], gate=(2, 3, 8), up=(2, 3, 8))(gated).becomes(becomes)


RULES = [_rule(kind, function) for kind, function in KINDS.items()]
