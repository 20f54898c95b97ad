"""Real scales as integers: m / 2^k. This runs when a model is compiled; here alone a float comes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpass.errors import NumericsError


def fit(scale: Tensor, bits: int = 15) -> tuple[Tensor, Tensor]:
    """(m, k), int64, with m / 2^k nearest to ``scale``: 2^(bits-1) <= |m| < 2^bits, or m = k = 0 for a zero.

    The relative error is at most 2^-bits.

    Args:
        scale: any shape, any float dtype.
        bits: of the mantissa: 8, 15 or 16.

    Raises:
        NumericsError: NaN or Inf.
    """
    wide = scale.to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        raise NumericsError("NaN or Inf in a scale", fix="repair the checkpoint")
    fraction, power = torch.frexp(wide)
    m = torch.floor(fraction.abs() * 2.0**bits + 0.5).to(torch.int64)
    k = bits - power.to(torch.int64)
    full = m == 1 << bits
    m, k = torch.where(full, m >> 1, m), torch.where(full, k - 1, k)
    return torch.where(wide < 0, -m, m), torch.where(m == 0, torch.zeros_like(k), k)


def fit_one(scale: float, bits: int = 15) -> tuple[int, int]:
    """``fit`` of one number."""
    m, k = fit(torch.tensor(scale, dtype=torch.float64), bits)
    return int(m), int(k)


def vector(scale: Tensor, bits: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """A dyadic vector: (mantissa [C], shift [C], exponent [1]), all int32. ``scale``: [C], any float dtype, any sign.

    Each channel has a mantissa of its own width, however far apart the channels are; 31 shifts and more are 0.
    """
    m, k = fit(scale.flatten(), bits)
    used = m != 0
    first = k[used].min() if bool(used.any()) else k.new_zeros(())
    shift = torch.where(used, (k - first).clamp(max=31), torch.zeros_like(k))
    return m.to(torch.int32), shift.to(torch.int32), first.reshape(1).to(torch.int32)


def row_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """A constant row (x [C], k [1]), int32, with max|x| in [2^28, 2^29]; for biases."""
    top = float(values.abs().max())
    k = 28 - (math.frexp(top)[1] - 1) if top else 0
    return torch.round(values.double() * 2.0**k).to(torch.int32), torch.tensor([k], dtype=torch.int32)
