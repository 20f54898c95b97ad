"""Activations, plain and gated."""

from __future__ import annotations

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


def _function(kind: str) -> Callable[[Tensor], Tensor]:
    if kind not in KINDS:
        raise UnsupportedError(f"unknown activation {kind!r}", fix=f"use one of {', '.join(KINDS)}")
    return KINDS[kind]


@define("activation(Tensor x, str kind) -> Tensor")
def activation(x: Tensor, kind: str) -> Tensor:
    """y = f(x), f named by ``kind`` (see ``KINDS``). Any shape."""
    return _function(kind)(x)


@define("gated(Tensor gate, Tensor up, str kind) -> Tensor")
def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """y = f(gate) · up: SwiGLU for silu, GeGLU for gelu (Shazeer 2020). Same shapes."""
    return _function(kind)(gate) * up
