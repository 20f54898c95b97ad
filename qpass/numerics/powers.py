"""Powers of two, from the bits of a float32: ``ceil(log2(x))`` in floating point is wrong next to a power of two.

x = 1.mantissa · 2^e gives ⌊log2 x⌋ = e and ⌈log2 x⌉ = e + (mantissa ≠ 0). Results are E8M0 bytes where they are
stored: byte b stands for 2^(b-127), 255 for NaN (OCP Microscaling Formats v1.0).
"""

from __future__ import annotations

import torch
from torch import Tensor

BIAS = 127
NAN = 255


def floor_log2(x: Tensor) -> Tensor:
    """⌊log2 x⌋, int32. x: float32, positive and finite; subnormals too."""
    return torch.frexp(x)[1].to(torch.int32) - 1


def ceil_log2(x: Tensor) -> Tensor:
    """⌈log2 x⌉, int32. x: float32, positive and finite; subnormals too."""
    mantissa, exponent = torch.frexp(x)
    return torch.where(mantissa == 0.5, exponent - 1, exponent).to(torch.int32)


def even_log2(x: Tensor, mantissa_bits: int) -> Tensor:
    """⌊log2⌋ of x after x is rounded to ``mantissa_bits`` bits behind the point: the EVEN rule of MX scales."""
    bits = x.contiguous().view(torch.int32) + (1 << (22 - mantissa_bits))
    return (bits >> 23) - BIAS


def nearest_log2(x: Tensor) -> Tensor:
    """log2 x rounded to the nearest integer: the power of two nearest by ratio; half way goes up."""
    below = floor_log2(x)
    return torch.where(x.double() >= torch.exp2(below.double() + 0.5), below + 1, below)


def to_e8m0(exponent: Tensor) -> Tensor:
    """E8M0 bytes of 2^exponent; exponents beyond -127 and 127 are clamped. exponent: int32."""
    return (exponent.clamp(-BIAS, BIAS) + BIAS).to(torch.uint8)


def from_e8m0(byte: Tensor) -> Tensor:
    """The float32 that an E8M0 byte stands for, exact: 2^-127 is subnormal, 255 is NaN."""
    bits = byte.to(torch.int32) << 23
    bits = torch.where(byte == 0, 1 << 22, bits)
    return torch.where(byte == NAN, 0x7FC00000, bits).view(torch.float32)


def exp2(exponent: Tensor) -> Tensor:
    """2^exponent as float32, exact; exponent: integers from -127 to 127."""
    return from_e8m0((exponent.to(torch.int32) + BIAS).to(torch.uint8))
