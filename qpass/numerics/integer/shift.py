"""The one rounding rule, and products of 30-bit integers that stay in int32.

RSH(a, k) = floor((a + 2^(k-1)) / 2^k): add half, shift arithmetically, ties to plus infinity; a left shift for k < 0.
Written as (a >> k) + bit k-1 of a, which is the same number and cannot overflow. Divisions are on operands that are
not negative, and floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = {torch.int32: 31, torch.int64: 63}
"""The largest shift count of a dtype. A larger one acts as this; beyond it every |a| <= 2^30 is 0 already."""


def rsh(a: Tensor, k: Tensor | int) -> Tensor:
    """RSH(a, k) in the dtype of ``a``, int32 or int64; exact for every a that fits.

    Args:
        a: any shape; for k < 0, |a| · 2^-k must fit.
        k: an int, or a tensor that broadcasts to ``a``.
    """
    if isinstance(k, int):
        if k <= 0:
            return a << min(-k, MOST[a.dtype]) if k else a
        k = min(k, MOST[a.dtype])
        return (a >> k) + ((a >> (k - 1)) & 1)
    k = k.to(a.dtype)
    right, left = k.clamp(0, MOST[a.dtype]), (-k).clamp(0, MOST[a.dtype])
    carry = (a >> (right - 1).clamp(min=0)) & (k > 0).to(a.dtype)
    return ((a >> right) + carry) << left


def mul_shift(a: Tensor, b: Tensor | int, s: int = 15) -> Tensor:
    """RSH(a · b, s) exactly, in int32, by splitting a at bit s.

    Args:
        a: int32.
        b: |b| < 2^16 and, where it is 16 bits wide, s <= 15; the result must fit int32.
        s: 1 to 15.
    """
    return (a >> s) * b + rsh((a & ((1 << s) - 1)) * b, s)


def mul_high(a: Tensor, b: Tensor) -> Tensor:
    """RSH(a · b, 30) exactly, in int32. int32 a, b with |a|, |b| <= 2^29."""
    a_high, a_low, b_high, b_low = a >> 15, a & 32767, b >> 15, b & 32767
    middle = a_high * b_low + b_high * a_low + ((a_low * b_low) >> 15)
    return a_high * b_high + rsh(middle, 15)


def msb(v: Tensor) -> Tensor:
    """floor(log2 v) for v >= 1, in the dtype of v: five steps of bisection, six for int64. 0 for v = 0."""
    result = torch.zeros_like(v)
    for step in (32, 16, 8, 4, 2, 1) if v.dtype == torch.int64 else (16, 8, 4, 2, 1):
        high = ((v >> step) > 0).to(v.dtype) * step
        result, v = result + high, v >> high
    return result
