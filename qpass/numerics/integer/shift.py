"""The one rounding rule, and products of 30-bit integers that stay in int32.

RSH(a, k) = floor((a + 2^(k-1)) / 2^k): add half, shift arithmetically, ties to plus infinity; a left shift for k < 0.
Written as (a >> k) + bit k-1 of a, which is the same number and cannot overflow. Divisions are on operands that are
not negative, and floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.marks import helper

MOST = {torch.int32: 31, torch.int64: 63}
"""The largest shift count of a dtype that the machine knows. RSH by more is 0, as the rule says."""


@helper
def rsh(a: Tensor, k: Tensor | int) -> Tensor:
    """RSH(a, k) in the dtype of ``a``, int32 or int64; exact for every a that fits.

    Args:
        a: any shape; for k < 0, |a| · 2^-k must fit.
        k: an int, or a tensor that broadcasts to ``a``.
    """
    if isinstance(k, int):
        if k <= 0:
            return a << min(-k, MOST[a.dtype]) if k else a
        return (a >> min(k, MOST[a.dtype])) + ((a >> min(k - 1, MOST[a.dtype])) & 1)
    most = MOST[a.dtype]
    carry = (a >> (k - 1).clamp(0, most)) & (k > 0)
    return ((a >> k.clamp(0, most)) + carry) << (-k).clamp(0, most)


@helper
def mul_shift(a: Tensor, b: Tensor | int, s: int = 15) -> Tensor:
    """RSH(a · b, s) exactly, in int32, by splitting a at bit s.

    Args:
        a: int32.
        b: |b| < 2^16 and, where it is 16 bits wide, s <= 15; the result must fit int32.
        s: 1 to 15.
    """
    return (a >> s) * b + rsh((a & ((1 << s) - 1)) * b, s)


@helper
def mul_high(a: Tensor, b: Tensor) -> Tensor:
    """RSH(a · b, 30) exactly, in int32. int32 a, b with |a|, |b| <= 2^29."""
    a_high, a_low, b_high, b_low = a >> 15, a & 32767, b >> 15, b & 32767
    middle = a_high * b_low + b_high * a_low + ((a_low * b_low) >> 15)
    return a_high * b_high + rsh(middle, 15)


@helper
def msb(v: Tensor) -> Tensor:
    """floor(log2 v) for v >= 1, in the dtype of v: how many of 2, 4, 8, ... it reaches. 0 for v = 0."""
    powers = 1 << torch.arange(1, MOST[v.dtype], dtype=v.dtype, device=v.device)
    return (v.unsqueeze(-1) >= powers).sum(-1, dtype=v.dtype)
