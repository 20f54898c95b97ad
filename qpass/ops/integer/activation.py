"""Activations of rows, plain and gated."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer import activation
from qpass.numerics.integer.literal import activation as literal
from qpass.numerics.integer.paper import activation as paper
from qpass.ops.dialect import define
from qpass.ops.integer.modes import form

_PLAIN = {"precise": activation.activated, "paper": paper.activated, "literal": literal.activated}
_GATED = {"precise": activation.gated, "paper": paper.gated, "literal": literal.gated}


@define(
    "integer_activation(Tensor x, Tensor k, str kind, Tensor mantissa, Tensor shift, Tensor exponent, Tensor table,"
    " str mode='precise') -> (Tensor, Tensor)"
)
def integer_activation(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor,
    mode: str = "precise",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x · h(x), h a sigmoid of x times a dyadic vector, which carries log2(e) and the smoothing; or of ReLU.

    Args:
        x, k: int32 [..., C] and [..., 1].
        kind: silu, quick_gelu, gelu, gelu_tanh, smoothed_gelu, smoothed_gelu_tanh or relu; gelu, gelu_tanh and relu
            have no vector and do not read it, that of the smoothed ones is without log2(e).
        mantissa, shift, exponent: int32 [C] or [1], the same, [1]. In mode ``literal`` mantissa alone is read: integers
            by which x is divided.
        table: int32 [33], of 2^-z.
    """
    return form(_PLAIN, mode)(x, k, kind, mantissa, shift, exponent, table)


@define(
    "integer_gated(Tensor x, Tensor k, Tensor up, Tensor k_up, str kind, Tensor mantissa, Tensor shift,"
    " Tensor exponent, Tensor table, str mode='precise') -> (Tensor, Tensor)"
)
def integer_gated(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor, mode: str = "precise",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x · h(x) · up (SwiGLU for silu). As ``integer_activation``; up, k_up are shaped as x, k."""
    return form(_GATED, mode)(x, k, up, k_up, kind, mantissa, shift, exponent, table)
