"""Float grids: numbers to codes and back, rounding to nearest, ties to even, saturating.

Eight-bit grids are torch's own casts, behind a clamp: what a cast alone makes of a number above the largest value (NaN,
infinity or that value) depends on the grid and on the version of torch. Four-bit ones are integer arithmetic on the
bits of a float32, which every compiler vectorizes: torch has no unpacked dtype for them, and torchao's converter of
E2M1 is in its prototypes and has no E3M0. NaN goes through an eight-bit grid; a four-bit one has no code for it, so
there the scale must carry it, and it does: the scale of a row that holds NaN is NaN.

With e exponent bits, m mantissa bits and a bias, the code of a normal magnitude is its float32 bits, rounded to m bits
behind the point and with the exponent re-biased; that of a subnormal one is the magnitude in units of 2^(1-bias-m).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Grid

_MANTISSA, _BIAS = 23, 127  # of float32


def encode(x: Tensor, grid: Grid) -> Tensor:
    """Codes of the grid values nearest to x. x: any shape, float32, already divided by its scale."""
    if grid.dtype is not None:
        return x.clamp(-grid.max, grid.max).to(grid.dtype)
    magnitude = x.abs().clamp(max=grid.max)
    drop = _MANTISSA - grid.mantissa
    bits = magnitude.view(torch.int32)
    rounded = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)
    normal = (rounded >> drop) - ((_BIAS - grid.bias) << grid.mantissa)
    small = torch.round(magnitude * 2.0 ** (grid.bias - 1 + grid.mantissa)).to(torch.int32)
    code = torch.where(magnitude < 2.0 ** (1 - grid.bias), small, normal)
    return (code | (torch.signbit(x).to(torch.int32) << (grid.bits - 1))).to(torch.uint8)


def nearest(x: Tensor, grid: Grid) -> Tensor:
    """``decode(encode(x))`` in a third of the operations, for those who need the values alone. NaN stays NaN."""
    if grid.dtype is not None:
        return encode(x, grid).to(torch.float32)
    magnitude = x.abs().clamp_(max=grid.max)
    drop = _MANTISSA - grid.mantissa
    bits = magnitude.view(torch.int32)
    rounded = (bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)).bitwise_and_(-(1 << drop)).view(torch.float32)
    step = 2.0 ** (1 - grid.bias - grid.mantissa)
    small = torch.round(magnitude / step).mul_(step)
    return torch.where(magnitude >= 2.0 ** (1 - grid.bias), rounded, small).copysign_(x)  # NaN is small, and stays


def decode(codes: Tensor, grid: Grid) -> Tensor:
    """The values of codes, float32."""
    if grid.dtype is not None:
        return codes.to(torch.float32)
    sign = 1 << (grid.bits - 1)
    code = codes.to(torch.int32)
    magnitude = code & (sign - 1)
    normal = ((magnitude << (_MANTISSA - grid.mantissa)) + ((_BIAS - grid.bias) << _MANTISSA)).view(torch.float32)
    small = magnitude.to(torch.float32) * 2.0 ** (1 - grid.bias - grid.mantissa)
    value = torch.where(magnitude < 1 << grid.mantissa, small, normal)
    return torch.where((code & sign) != 0, -value, value)
