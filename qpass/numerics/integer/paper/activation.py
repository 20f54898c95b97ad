"""DI-SwiGLU on eight bits: codes of gate and up, a sigmoid of seven bits by branches, one product of 24 bits."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer.activation import sigmoid_of
from qpass.numerics.integer.quantize import quantize_rows
from qpass.numerics.integer.rows import normalize
from qpass.numerics.integer.shift import mul_shift, rsh

PLACES = 7
_MANTISSA = 8


def eight_bits(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(code - zero int32 [..., C], m, k), |code - zero| <= 255, m of 8 bits."""
    codes, zero, m, k = quantize_rows(x, k, 8, False, _MANTISSA)
    return codes - zero, m, k


def _sigmoid(
    d: Tensor, m: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> Tensor:
    """h(d · m · 2^-k), 0 to 2^7."""
    x, k = normalize(d * m, k)
    return rsh(sigmoid_of(x, k, kind, mantissa, shift, exponent, table), 15 - PLACES)


def _product(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x · h(x) as (integer of at most 16 bits, m, k)."""
    d, m, k = eight_bits(x, k)
    if kind == "relu":
        return d.clamp(min=0) << PLACES, m, k + PLACES
    return d * _sigmoid(d, m, k, kind, mantissa, shift, exponent, table), m, k + PLACES


def activated(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``activation.activated``."""
    y, m, k = _product(x, k, kind, mantissa, shift, exponent, table)
    return y * m, k


def gated(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``activation.gated``."""
    y, m, k = _product(x, k, kind, mantissa, shift, exponent, table)
    d, m_up, k_up = eight_bits(up, k_up)
    return mul_shift((y * d) << 6, m * m_up, 15), k + k_up - 9
