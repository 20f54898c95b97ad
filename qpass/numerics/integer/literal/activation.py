"""DI-SwiGLU, Algorithm 3: both exponentials below the maximum of the row, so that each can vanish.

    x' = floor(gate / alpha);  M = max(x', 0);  E = DI-Exp(x' - M);  E0 = DI-Exp(-M);  sig = floor(E 2^7 / (E + E0))
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.numerics.integer.literal.exp import di_exp
from qpass.numerics.integer.literal.requant import quantize
from qpass.numerics.integer.shift import mul_shift

PLACES = 7


def _codes(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(code - zero int64, m, k)."""
    codes, zero, m, k = quantize(x, k, 8, False)
    return codes.to(torch.int64) - zero, m, k


def sigmoid(d: Tensor, m: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """0 to 2^7, int64. d: int64, code - zero; m, k: its scale; alpha: integers >= 1 by which it is divided."""
    x = torch.div(d, alpha, rounding_mode="floor")
    top = x.amax(-1, keepdim=True).clamp(min=0)
    m, k = m.to(torch.int64), k.to(torch.int64)
    e, e0 = di_exp((x - top).clamp(max=0), m, k)[0], di_exp(-top, m, k)[0]
    return ((e << PLACES) // (e + e0).clamp(min=1)).clamp(max=1 << PLACES)


def _product(x: Tensor, k: Tensor, kind: str, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d, m, k = _codes(x, k)
    if kind not in ("silu", "relu"):
        raise UnsupportedError(f"the activation {kind!r} in mode 'literal'", fix="use mode precise or paper")
    h = sigmoid(d, m, k, alpha) if kind == "silu" else (d > 0).to(torch.int64) << PLACES
    return (d * h).to(torch.int32), m, k + PLACES


def activated(
    x: Tensor, k: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``activation.activated`` for silu and relu; ``mantissa`` is alpha."""
    y, m, k = _product(x, k, kind, mantissa)
    return y * m, k


def gated(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``activation.gated`` for silu and relu; ``mantissa`` is alpha."""
    y, m, k = _product(x, k, kind, mantissa)
    d, m_up, k_up = _codes(up, k_up)
    product = (y * d).to(torch.int32) << 6
    return mul_shift(mul_shift(product, m, 8), m_up, 8), k + k_up - 10
