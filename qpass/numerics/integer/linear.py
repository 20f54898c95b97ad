"""Linear layer on codes: exact int32 sums, then one dyadic factor per output channel and one per row.

    P = (X - zero) Wᵀ;   A = RSH(P · 2^up · mantissa_c, 15);   B = RSH(RSH(A, shift_c) · m, 15);   k = ...
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.numerics.integer.rows import add
from qpass.numerics.integer.shift import mul_shift, rsh


def room(width: int, most_input: int, most_weight: int = 128) -> int:
    """How many bits sums of ``width`` products may be shifted left and stay within 2^30.

    Raises:
        UnsupportedError: a sum that could itself leave 2^30.
    """
    bound = width * most_input * most_weight
    if bound > 1 << 30:
        what = f"a sum of {width} products of codes can reach {bound}, beyond 2^30"
        raise UnsupportedError(what, fix="use fewer bits for this linear, or split it")
    return 30 - (bound - 1).bit_length()


def matmul(codes: Tensor, w_codes: Tensor) -> Tensor:
    """int32 [..., N]: exact sums of int8 products. codes: int8 [..., K]; w_codes: int8 [N, K]."""
    flat = codes.reshape(-1, codes.shape[-1])
    return torch._int_mm(flat, w_codes.t()).reshape(*codes.shape[:-1], w_codes.shape[0])


def linear(
    codes: Tensor, zero: Tensor | None, m: Tensor, k: Tensor, w_codes: Tensor, w_mantissa: Tensor, w_shift: Tensor,
    w_exponent: Tensor, w_sum: Tensor | None, bias: Tensor | None, bias_exponent: Tensor | None, up: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows (x int32 [..., N], k int32 [..., 1]) of x Wᵀ + b.

    Args:
        codes, zero, m, k: [..., K] int8 and int32 [..., 1]; zero None where it is 0.
        w_codes: int8 [N, K].
        w_mantissa, w_shift, w_exponent: dyadic vector of the weight's scales, [N], [N], [1].
        w_sum: int32 [N], sums of w_codes' rows; needed with ``zero``.
        bias, bias_exponent: a constant row [N] and [1], or None.
        up: ``room`` of the sums.
    """
    sums = matmul(codes, w_codes)
    if zero is not None and w_sum is not None:
        sums = sums - zero * w_sum
    x = mul_shift(rsh(mul_shift(sums << up, w_mantissa), w_shift), m)
    exponent = k + w_exponent + (up - 30)
    if bias is None or bias_exponent is None:
        return x, exponent
    return add(x, exponent, bias.expand_as(x), bias_exponent.expand_as(exponent))
