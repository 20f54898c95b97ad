"""Logits as one comparable row of 24 bits, and the token that wins."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.rows import TOP, normalize
from qpass.numerics.integer.shift import rsh

BITS = 24
"""Wide enough for any ranking, and narrow enough that float32 holds every one exactly."""


def logits(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with |x| <= 2^24, so that x · 2^-k is exact in float32 and orders as x does."""
    x, k = normalize(x, k)
    return rsh(x, TOP + 1 - BITS), k - (TOP + 1 - BITS)


def argmax(x: Tensor) -> Tensor:
    """int64 [...]: the first index of the largest of int32 [..., V]; ties go to the lowest id."""
    top = x.amax(-1, keepdim=True)
    ids = torch.arange(x.shape[-1], device=x.device)
    return torch.where(x == top, ids, torch.full_like(ids, x.shape[-1])).amin(-1)
