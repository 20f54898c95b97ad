"""Activations, plain and gated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.ops.dialect import define

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu_squared": lambda x: F.relu(x).square(),
}

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": lambda x: 0.5 * (1 + torch.erf(x * math.sqrt(0.5))),
    "gelu_tanh": lambda x: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
}
"""h of the activations x · h(x) that can be smoothed. Those of relu have a free positive scale already."""


def _function(kind: str) -> Callable[[Tensor], Tensor]:
    if kind not in KINDS:
        raise UnsupportedError(f"unknown activation {kind!r}", fix=f"use one of {', '.join(KINDS)}")
    return KINDS[kind]


def _smoothed(x: Tensor, kind: str, smooth: Tensor | None) -> Tensor:
    """f(x), or x · h(x · smooth) in at least float32 and rounded once, as ATen's own activations are."""
    function = _function(kind)
    if smooth is None:
        return function(x)
    if kind not in GATES:
        raise UnsupportedError(f"{kind!r} cannot be smoothed", fix=f"smooth one of {', '.join(GATES)}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * GATES[kind](wide * smooth.to(wide.dtype))).to(x.dtype)


@define("activation(Tensor x, str kind, Tensor? smooth=None) -> Tensor")
def activation(x: Tensor, kind: str, smooth: Tensor | None = None) -> Tensor:
    """y = f(x), f named by ``kind`` (see ``KINDS``); with ``smooth``, x · h(x · smooth) where f(x) = x · h(x) (FSBR).

    Args:
        x: [..., C].
        smooth: [C], any float dtype.
    """
    return _smoothed(x, kind, smooth)


@define("gated(Tensor gate, Tensor up, str kind, Tensor? smooth=None) -> Tensor")
def gated(gate: Tensor, up: Tensor, kind: str, smooth: Tensor | None = None) -> Tensor:
    """y = f(gate) · up: SwiGLU for silu, GeGLU for gelu (Shazeer 2020). Same shapes.

    ``smooth``: [C] as in ``activation``, for the gate.
    """
    return _smoothed(gate, kind, smooth) * up
