"""The requantization of DI-MatMul as it is printed: one division an element, everything floored.

    k_y = floor(log2(256 D 2^K / (R m)));  m_y = floor(R m / D) >> (K - k_y);  Y = floor((P - p_min) D / R);
    zero = floor(-p_min D / R)

m_y is too small by up to 0.8 %, and 256, nine bits, for a scale that is a power of two. The zero point is floored apart
from Y, and outside of 0 to D for rows of one sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.quantize import code_offset, quantize_rows
from qpass.numerics.integer.rows import normalize
from qpass.numerics.integer.shift import msb

MANTISSA = 8
_UP = 46


@helper
def scale_of(extent: Tensor, m: Tensor, k: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(m_y, k_y), int64, of the scale R m / (D 2^K). extent: int64 R >= 1, R · m below 2^46; ``most``: D <= 255."""
    product = extent * m
    quotient = torch.full_like(product, (256 * most) << _UP) // product
    drop = _UP - case(msb(quotient))
    m_y = (product // most >> drop.clamp(0, 62)) << (-drop).clamp(0, 62)
    return m_y, k - drop


def requant(p: Tensor, m: Tensor, k: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Y, zero, m_y, k_y), int64, of products P · m / 2^K, a row at a time.

    Args:
        p: int64 [..., C], |P| < 2^31.
        m, k: int64 [..., 1], m below 2^15.
        most: D, 2^bits - 1.
    """
    low = p.amin(-1, keepdim=True)
    extent = (p.amax(-1, keepdim=True) - low).clamp(min=1)
    m_y, k_y = scale_of(extent, m, k, most)
    # a division that floors a negative number: the zero point's, for rows of positive numbers
    zero = torch.div(-low * most, extent, rounding_mode="floor")
    return ((p - low) * most // extent).clamp(max=most), zero, m_y, k_y  # no p - low is above the extent


def quantize(
    x: Tensor, k: Tensor, bits: int = 8, symmetric: bool = True, mantissa: int = MANTISSA
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``quantize.quantize_rows``; zero points are kept in ``bits`` bits. Symmetric codes are not the paper's."""
    if symmetric:
        return quantize_rows(x, k, bits, True, MANTISSA)
    most, offset = (1 << bits) - 1, code_offset(bits, False)
    x, k = normalize(x, k)
    codes, zero, m, k_y = requant(x.to(torch.int64), torch.ones_like(k, dtype=torch.int64), k.to(torch.int64), most)
    zero = zero.clamp(0, most)
    return (codes - offset).to(torch.int8), (zero - offset).to(torch.int32), m.to(torch.int32), k_y.to(torch.int32)
