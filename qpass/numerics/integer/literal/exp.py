"""DI-Exp, Algorithm 1.

    m_f = m + (m >> 1) - (m >> 4);   t = -round(2^k / m_f);   q = floor(x / t);   r = x - q t;   ((r >> 1) - t) >> q

e^(x m / 2^k) is about the result over -t. log2(e) is taken as 1.4375, t is rounded to an integer, which changes the
temperature, and the result has no more bits than t.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST = 40
"""Exponents are at most this, so that all fits int64. A step of 2^-40 is no distance between scores."""


def di_exp(x: Tensor, m: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """(result, -t), int64: the result is 0 to -t.

    Args:
        x: int64, <= 0.
        m, k: int64, broadcast to x; m >= 0.
    """
    k = k.clamp(max=LONGEST)
    scaled = (m + (m >> 1) - (m >> 4)).clamp(min=1)
    power = (k * 0 + 1) << k.clamp(min=0)  # 2^k below 1 is 0, of which t is 0
    step = ((power * (k >= 0) + (scaled >> 1)) // scaled).clamp(min=1)
    q = (-x) // step
    r = x + q * step
    return torch.minimum((r >> 1) + step, step).clamp(min=0) >> q.clamp(max=62), step  # -t < r <= 0
