"""Rows -> codes with one division a row (DI-requant, I-LLM), rounding anchored at the zero point.

    s = m · 2^e >= R / D,  m of 8 or 15 bits, rounded up;   code = RSH(RSH(x, e') · (2^(b+14) / m), F)

The paper takes the codes of the exact range and stores a rounded scale beside them, which is an error of eps_m at the
end of the range; here the codes are those of the scale that is stored, so a mantissa of 8 bits costs nothing but that
much range. |decoded - x| <= s · 0.51, for every width of code and mantissa (see the tests for the derivation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.shift import msb, rsh


def largest_code(bits: int, symmetric: bool) -> int:
    """D: codes are -D..D, or 0..D with a zero point."""
    return (1 << (bits - 1)) - 1 if symmetric else (1 << bits) - 1


def code_offset(bits: int, symmetric: bool) -> int:
    """What is taken from codes 0..D so that they fit int8."""
    return 128 if bits == 8 and not symmetric else 0


def _ceil_shift(v: Tensor, k: Tensor) -> Tensor:
    """ceil(v / 2^k) for v >= 0, a left shift for k < 0."""
    return -((-v) >> k.clamp(min=0)) << (-k).clamp(min=0)


def _scale(extent: Tensor, most: int, mantissa: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of the range R >= 1: (m, e, 1/m scaled, pre-shift of x, final shift), int32 each."""
    before = case(msb(extent)) - 14
    g = 14 + most.bit_length()
    u = _ceil_shift(extent, before) * (-(-(1 << g) // most))  # 28 to 30 bits
    drop = case(msb(u)) - (mantissa - 1)
    m = _ceil_shift(u, drop)
    full = case(m >> mantissa)  # 2^mantissa is one bit too many
    m, drop = m >> full, drop + full
    inverse = ((1 << (mantissa + 14)) + (m >> 1)) // m
    return m, drop + before - g, inverse, before, drop + mantissa + 14 - g


@helper
def quantize_rows(
    x: Tensor, k: Tensor, bits: int = 8, symmetric: bool = True, mantissa: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of each row. Returns (codes int8 [..., C], zero int32 [..., 1], m int32 [..., 1], k int32 [..., 1]).

    Args:
        x, k: rows, |x| <= 2^30.
        bits: of a code, 2 to 8.
        symmetric: zero is 0 and codes are -D..D; otherwise the range always holds 0, which has a code of its own.
        mantissa: bits of m, 8 or 15.
    """
    most = largest_code(bits, symmetric)
    if symmetric:
        extent = x.abs().amax(-1, keepdim=True).clamp(min=1)
        m, e, inverse, before, after = _scale(extent, most, mantissa)
        codes = rsh(rsh(x, before) * inverse, after).clamp(-most, most)
        return codes.to(torch.int8), torch.zeros_like(m), m, k - e
    low = x.amin(-1, keepdim=True).clamp(1 - (1 << 30), 0)  # the extent must fit int32
    extent = (x.amax(-1, keepdim=True).clamp(min=0) - low).clamp(min=1)
    m, e, inverse, before, after = _scale(extent, most, mantissa)
    zero = rsh(rsh(-low, before) * inverse, after).clamp(0, most)
    codes = (rsh(rsh(x, before) * inverse, after) + zero).clamp(0, most)
    offset = code_offset(bits, symmetric)
    return (codes - offset).to(torch.int8), zero - offset, m, k - e
