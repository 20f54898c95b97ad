"""Rows with one exponent: normalize, add, scale, bring to a common exponent."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.shift import msb, mul_shift, rsh

TOP = 28
"""A normalized row has its largest |x| in [2^28, 2^29]: 2^29 is reached by rounding only."""
LAST = 127
"""The largest exponent. A row that is zero has it, so that it never holds back the row it is added to."""


@helper
def normalize(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The same values with the largest |x| of a row at bit 28; exact where it shifts left.

    Values below 2^-127 are lost.

    Args:
        x: int32 [..., C], |x| < 2^31.
        k: int32 [..., 1].
    """
    largest = x.abs().amax(-1, keepdim=True)
    top = case(msb(largest)) - TOP
    wanted = torch.where(largest == 0, torch.full_like(largest, LAST), (k - top).clamp(max=LAST))
    # k - wanted, written so that it is seen not to depend on both
    return rsh(x, torch.where(largest == 0, torch.zeros_like(largest), torch.maximum(top, k - LAST))), wanted


def add(a: Tensor, ka: Tensor, b: Tensor, kb: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two rows; the coarser of the two exponents. Shapes broadcast. Result: |x| <= 2^30."""
    a, ka = normalize(a, ka)
    b, kb = normalize(b, kb)
    k = torch.minimum(ka, kb)
    return rsh(a, ka - k) + rsh(b, kb - k), k


def scale(x: Tensor, k: Tensor, mantissa: Tensor, shift: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times a dyadic vector, [C] or [1], of any sign: one rounding, |result| <= 2^29. Powers of two are exact."""
    x, k = normalize(x, k)
    return rsh(mul_shift(x, mantissa), shift), k + exponent - 15


def concat(a: Tensor, ka: Tensor, b: Tensor, kb: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of two rows side by side at the coarser exponent: [..., C], [..., D] -> [..., C + D], [..., 1]."""
    a, ka = normalize(a, ka)
    b, kb = normalize(b, kb)
    k = torch.minimum(ka, kb)
    return torch.cat((rsh(a, ka - k), rsh(b, kb - k)), dim=-1), k


def align(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Heads with an exponent each brought to one a token. x: int32 [..., H, D]; k: [..., H, 1] -> [..., 1, 1]."""
    x, k = normalize(x, k)
    common = k.amin(-2, keepdim=True)
    return rsh(x, k - common), common
