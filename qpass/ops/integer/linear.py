"""Rows to codes, and the linear on codes."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer import linear as products
from qpass.numerics.integer.literal import requant as literal
from qpass.numerics.integer.quantize import quantize_rows
from qpass.ops.dialect import define
from qpass.ops.integer.modes import form

_QUANTIZE = {"precise": quantize_rows, "paper": quantize_rows, "literal": literal.quantize}


@define(
    "integer_quantize(Tensor x, Tensor k, int bits, bool symmetric, int mantissa=15, str mode='precise')"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def integer_quantize(
    x: Tensor, k: Tensor, bits: int, symmetric: bool, mantissa: int = 15, mode: str = "precise"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes int8 [..., C], zero, mantissa (15 bits) and exponent, int32 [..., 1], of rows x int32 [..., C], k.

    mantissa: bits of it that are not zero, 15 or 8: shorter ones are shifted left, so that products keep their width.
    """
    codes, zero, m, k = form(_QUANTIZE, mode)(x, k, bits, symmetric, mantissa)
    up = 15 - (literal.MANTISSA if mode == "literal" else mantissa)
    return (codes, zero, m << up, k + up) if up else (codes, zero, m, k)


@define(
    "integer_linear(Tensor codes, Tensor? zero, Tensor m, Tensor k, Tensor w_codes, Tensor w_mantissa, Tensor w_shift,"
    " Tensor w_exponent, Tensor? w_sum, Tensor? bias, Tensor? bias_exponent, int up) -> (Tensor, Tensor)"
)
def integer_linear(
    codes: Tensor, zero: Tensor | None, m: Tensor, k: Tensor, w_codes: Tensor, w_mantissa: Tensor, w_shift: Tensor,
    w_exponent: Tensor, w_sum: Tensor | None, bias: Tensor | None, bias_exponent: Tensor | None, up: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x Wᵀ + b from codes: int8 products, exact int32 sums, two dyadic factors.

    Args:
        codes, zero, m, k: what ``integer_quantize`` gives; zero None for symmetric codes.
        w_codes: int8 [N, K].
        w_mantissa, w_shift, w_exponent: int32 [N], [N], [1], the dyadic vector of the weight's scales.
        w_sum: int32 [N]: sums of the rows of w_codes, with zero.
        bias, bias_exponent: int32 [N] and [1], or None.
        up: bits by which the sums may be shifted left.
    """
    return products.linear(
        codes, zero, m, k, w_codes, w_mantissa, w_shift, w_exponent, w_sum, bias, bias_exponent, up
    )
