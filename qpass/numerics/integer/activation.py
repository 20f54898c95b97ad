"""x · h(x) and its product with a second row: SwiGLU and GELU (DI-SwiGLU, repaired), and ReLU.

    sigmoid(t) = 1 / (1 + 2^(-t log2 e)), by the branch whose exponential is at most 1, element by element

FSBR's 1 / s is a dyadic vector that multiplies the argument of the sigmoid; log2(e) is folded into it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.exp2 import ONE, exp2_negative, to_q15
from qpass.numerics.integer.rows import normalize
from qpass.numerics.integer.shift import mul_high, mul_shift, rsh

CUBIC = {
    "gelu_tanh": (13073, 2338, 0),
    "gelu": (13070, 2412, -10603),
}
"""t(x) = x (c0 + c1 x² + c2 x⁴) with h(x) = sigmoid(t(x)); c0 in Q13, c1 in Q15, c2 in Q24. For the form with tanh that
is an identity; for the one with erf a fit, 1.9e-5 from it at most."""


SMOOTHED = {"smoothed_gelu": "gelu", "smoothed_gelu_tanh": "gelu_tanh"}
"""x · h(x times a dyadic vector) -> the kind that h is of."""


def sigmoid_q15(z: Tensor, negative: Tensor, table: Tensor) -> Tensor:
    """sigmoid(t) in Q15, 0 to 2^15. z: |t| log2(e) in Q15, int32 0 to 2^30; ``negative``: bool, t < 0."""
    small = exp2_negative(z, table)
    bottom = ONE + small
    top = torch.where(negative, small, torch.full_like(small, ONE))
    return ((top << 15) + (bottom >> 1)) // bottom


def sigmoid_argument(x: Tensor, k: Tensor, mantissa: Tensor, shift: Tensor, exponent: Tensor) -> Tensor:
    """|x| times a positive dyadic vector (log2(e), times 1/s or 1.702), as base-2 Q15. x normalized, int32."""
    return to_q15(mul_shift(x.abs(), mantissa), k + exponent + shift - 30)


def gelu_argument(x: Tensor, k: Tensor, kind: str) -> Tensor:
    """|t(x)| log2(e) in base-2 Q15 with h(x) = sigmoid(t(x)) for ``gelu`` or ``gelu_tanh``; |x| saturates at 6."""
    c0, c1, c2 = CUBIC[kind]
    a = to_q15(x.abs(), k - 12).clamp(max=6 << 12)  # Q12
    square = rsh(a * a, 12)  # Q12, at most 36
    coarse = rsh(square, 2)  # Q10, so that its square fits
    slope = c0 + rsh(square * c1, 14) + rsh(rsh(coarse * coarse, 16) * c2, 15)  # Q13
    return rsh(rsh(a * slope, 14) * 11819, 9)  # 11819: log2(e) in Q13; Q11 · Q13 -> Q15


def sigmoid_of(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> Tensor:
    """h of normalized rows, in Q15; arguments as in ``activated``, any kind but relu."""
    if kind in SMOOTHED:
        z = gelu_argument(mul_shift(x.abs(), mantissa), k + exponent + shift - 15, SMOOTHED[kind])
    elif kind in CUBIC:
        z = gelu_argument(x, k, kind)
    else:
        z = sigmoid_argument(x, k, mantissa, shift, exponent)
    return sigmoid_q15(z, x < 0, table)


def activated(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """x · h(x), or relu; rows to rows. ``mantissa``, ``shift``, ``exponent``: as in ``sigmoid_argument``; for a kind
    of ``SMOOTHED`` the positive vector itself."""
    x, k = normalize(x, k)
    if kind == "relu":
        return x.clamp(min=0), k
    return mul_shift(x, sigmoid_of(x, k, kind, mantissa, shift, exponent, table)), k


def gated(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x · h(x) · up, rows to rows: |result| <= 2^28."""
    y, k = activated(x, k, kind, mantissa, shift, exponent, table)
    up, k_up = normalize(up, k_up)
    return mul_high(y, up), k + k_up - 30
