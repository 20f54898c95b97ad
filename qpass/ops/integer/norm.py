"""Norms of rows."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer import norm
from qpass.numerics.integer.literal import norm as literal
from qpass.numerics.integer.paper import norm as paper
from qpass.ops.dialect import define
from qpass.ops.integer.modes import form

_RMS = {"precise": norm.rms_norm, "paper": paper.rms_norm, "literal": literal.rms_norm}
_LAYER = {"precise": norm.layer_norm, "paper": paper.layer_norm, "literal": literal.layer_norm}


@define(
    "integer_rms_norm(Tensor x, Tensor k, Tensor? mantissa, Tensor? shift, Tensor? exponent, int eps_mantissa,"
    " int eps_exponent, str mode='precise', Tensor? channels=None) -> (Tensor, Tensor)"
)
def integer_rms_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, eps_mantissa: int,
    eps_exponent: int, mode: str = "precise", channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of w · x / sqrt(mean(x²) + eps). x: int32 [..., n], k [..., 1]; w: a dyadic vector [n], [n], [1], or None.

    eps_mantissa, eps_exponent: the dyadic of n · eps.
    channels: int32 [4, n], what ``numerics.integer.channels`` says, for the modes that read their input so; or None.
    """
    static = () if channels is None else (channels,)
    return form(_RMS, mode)(x, k, mantissa, shift, exponent, eps_mantissa, eps_exponent, *static)


@define(
    "integer_layer_norm(Tensor x, Tensor k, Tensor? mantissa, Tensor? shift, Tensor? exponent, Tensor? bias,"
    " Tensor? bias_exponent, int eps_mantissa, int eps_exponent, str mode='precise', Tensor? channels=None)"
    " -> (Tensor, Tensor)"
)
def integer_layer_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, eps_mantissa: int, eps_exponent: int, mode: str = "precise",
    channels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of w · (x - mean) / sqrt(var + eps) + b. As ``integer_rms_norm``; b: int32 [n] and [1], or None."""
    static = () if channels is None else (channels,)
    eps = eps_mantissa, eps_exponent
    return form(_LAYER, mode)(x, k, mantissa, shift, exponent, bias, bias_exponent, *eps, *static)
