"""Activations of a plain MLP, and those that model code spells out.

    gelu_tanh:  y = x/2 · (1 + tanh(sqrt(2/pi) · (x + 0.044715 x³)))

before   8 lines of mul, pow, add and tanh, or one of relu, gelu, silu
after    %act = qpass.activation(x, 'gelu_tanh')
Exact but for the spelled-out gelu_tanh, which is within two units in the last place of ATen's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.graph.rule import Rule
from qpass.ops.activation import KINDS
from qpass.patterns.gated import ANCHORS


def _rule(kind: str, *functions: Callable[[Tensor], Tensor]) -> Rule:
    def becomes(x: Any) -> Any:
        return ops.activation(x, kind)

    def spelled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def activation(x: Tensor) -> Tensor:
            return function(x)

        activation.__name__ = kind
        return activation

    unset = rule(*ANCHORS[kind], x=(2, 3, 8))(spelled(functions[0]))
    for function in functions[1:]:
        unset.or_spelled(spelled(function))
    return unset.becomes(becomes)


def _new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


# relu_squared comes before relu, which is a part of it.
RULES = [_rule(kind, function) for kind, function in reversed(KINDS.items()) if kind != "gelu_tanh"]
RULES.append(_rule("gelu_tanh", KINDS["gelu_tanh"], _new_gelu, _fast_gelu))
