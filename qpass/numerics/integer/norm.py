"""RMSNorm and LayerNorm on rows (DI-Norm, repaired): the whole row squared at 15 bits, the numerator at 29.

    v = sum x'² + n · eps;   r = isqrt(v);   y = x · (2^30 / r) · sqrt(n)

One division a row. The only numbers beyond int32 are one v, and for LayerNorm one sum, a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.numerics.integer.isqrt import isqrt
from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.rows import add, normalize
from qpass.numerics.integer.shift import msb, mul_shift, rsh

WIDEST = 32767
"""Channels up to which the two int32 sums of squares cannot overflow."""


def _mean_square(x15: Tensor, k15: Tensor, eps_mantissa: int, eps_exponent: int) -> tuple[Tensor, Tensor]:
    """(v, over), int64 [..., 1]: sum x² + n · eps is v · 2^over in units of 2^(-2 k15), over even. |x15| <= 2^15.

    ``over`` is 0 but where eps is so much larger than the row that v would leave int64.
    """
    square = x15 * x15
    low = (square & 0xFFFF).sum(-1, keepdim=True, dtype=torch.int32)
    high = (square >> 16).sum(-1, keepdim=True, dtype=torch.int32)
    v = (high.to(torch.int64) << 16) + low.to(torch.int64)
    left = 2 * k15.to(torch.int64) - eps_exponent
    over = (left - 44).clamp(min=0)
    over = over + (over & 1)
    return (rsh(v, over) + rsh(torch.full_like(v, eps_mantissa), (over - left).clamp(min=-44))).clamp(min=1), over


def width_root(n: int) -> tuple[int, int]:
    """(round(sqrt(n) · 2^places), places), the first of 15 bits."""
    places = 14 - math.isqrt(n).bit_length() + 1
    return round(math.sqrt(n) * 2**places), places


@helper
def unit_rows(x: Tensor, k: Tensor, eps_mantissa: int, eps_exponent: int) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x²) + eps), rows to rows.

    Args:
        x, k: rows [..., n], n at most ``WIDEST``.
        eps_mantissa, eps_exponent: ``fit`` of n · eps, 15 bits.
    """
    n = x.shape[-1]
    if n > WIDEST:
        raise UnsupportedError(f"a norm over {n} channels", fix=f"at most {WIDEST} have an integer form")
    x, k = normalize(x, k)
    v, over = _mean_square(rsh(x, 14), k - 14, eps_mantissa, eps_exponent)
    even = case(msb(v)) - 30
    even = even + (even & 1)
    root = isqrt(rsh(v, even)).clamp(min=1)  # of 30 or 31 bits
    inverse = (((1 << 30) + (root >> 1)) // root).to(torch.int32)
    root_n, places = width_root(n)
    factor = rsh(inverse * root_n, 15)
    return mul_shift(x, factor), 14 + ((even + over) >> 1).to(torch.int32) + places


def scale_channels(x: Tensor, k: Tensor, mantissa: Tensor, shift: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Rows times a dyadic vector [C] with mantissas below 2^15."""
    return rsh(mul_shift(x, mantissa), shift), k + exponent - 15


def center(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """x less the mean of its row, rounded at bit 29."""
    n = x.shape[-1]
    x, k = normalize(x, k)
    total = x.sum(-1, keepdim=True, dtype=torch.int64) + (n << 30)  # not negative: a division floors
    mean = (total + n // 2) // n - (1 << 30)
    return x - mean.to(torch.int32), k


def rms_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, eps_mantissa: int,
    eps_exponent: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """w · x / sqrt(mean(x²) + eps), rows to rows; w a dyadic vector or None."""
    x, k = unit_rows(x, k, eps_mantissa, eps_exponent)
    if mantissa is None or shift is None or exponent is None:
        return x, k
    return scale_channels(x, k, mantissa, shift, exponent)


def layer_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, eps_mantissa: int, eps_exponent: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """w · (x - mean) / sqrt(var + eps) + b, rows to rows; w a dyadic vector, b a constant row, or None."""
    x, k = rms_norm(*center(x, k), mantissa, shift, exponent, eps_mantissa, eps_exponent)
    if bias is None or bias_exponent is None:
        return x, k
    return add(x, k, bias.expand_as(x), bias_exponent.expand_as(k))
