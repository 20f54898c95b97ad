"""DI-Norm, Algorithm 4: codes a channel, scales brought to one by an integer ratio, the root of the sum of squares.

    m'_c = m_c >> (k_c - min k);   alpha_c = floor(m'_c / min m');   X' = alpha X;   y = X' sqrt(n) / isqrt(sum X'^2)

The ratio is made when a model is compiled. eps and the width of the result are not printed: none, and 22 bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpass.numerics.integer.channels import aligned
from qpass.numerics.integer.isqrt import isqrt
from qpass.numerics.integer.norm import scale_channels
from qpass.numerics.integer.rows import add
from qpass.numerics.integer.shift import mul_shift

_PLACES = 22


def _divided(x: Tensor) -> tuple[Tensor, Tensor]:
    """x sqrt(n) / isqrt(sum x²), rows. x: int32 [..., n], |x| below 2^22."""
    n = x.shape[-1]
    wide = x.to(torch.int64)
    root = isqrt((wide * wide).sum(-1, keepdim=True), 31).clamp(min=1)
    y = ((wide.abs() << _PLACES) // root).clamp(max=1 << _PLACES).to(torch.int32)  # no |x| is above the root
    y = torch.where(x < 0, -y, y)
    places = 15 - math.isqrt(n).bit_length()
    return mul_shift(y << 7, round(math.sqrt(n) * 2**places)), torch.full_like(x[..., :1], _PLACES + places - 8)


def rms_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, eps_mantissa: int,
    eps_exponent: int, channels: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``norm.rms_norm``, without eps. channels: int32 [4, n]."""
    return _weighted(*_divided(aligned(x, k, channels)), mantissa, shift, exponent)


def _weighted(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None
) -> tuple[Tensor, Tensor]:
    if mantissa is None or shift is None or exponent is None:
        return x, k
    return scale_channels(x, k, mantissa, shift, exponent)


def layer_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, eps_mantissa: int, eps_exponent: int, channels: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``norm.layer_norm``, without eps; the mean is an integer."""
    units = aligned(x, k, channels)
    mean = torch.div(units.sum(-1, keepdim=True, dtype=torch.int64), x.shape[-1], rounding_mode="floor")
    x, k = _weighted(*_divided(units - mean.to(torch.int32)), mantissa, shift, exponent)
    if bias is None or bias_exponent is None:
        return x, k
    return add(x, k, bias.expand_as(x), bias_exponent.expand_as(k))
