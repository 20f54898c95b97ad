"""Exact integer square root, one bit a step, no division (the bit-wise check of I-LLM's DI-Norm)."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.marks import helper


@helper
def isqrt(v: Tensor, steps: int = 16) -> Tensor:
    """floor(sqrt(v)) of int64 v, 0 <= v < 2^(2 · steps); steps at most 31."""
    root, rest = torch.zeros_like(v), v
    for bit in range(steps - 1, -1, -1):
        trial = ((root << 1) + (1 << bit)) << bit
        fits = (rest >= trial).to(v.dtype)
        root, rest = root + (fits << bit), rest - fits * trial
    return root
