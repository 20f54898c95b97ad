"""DI-Norm on eight bits a channel: static scales, ratios to the least with eight fraction bits; then as precise."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer import norm
from qpass.numerics.integer.channels import aligned


def rms_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, eps_mantissa: int,
    eps_exponent: int, channels: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``norm.rms_norm``; eps is n · eps in units of the square of the shared scale. channels: int32 [4, n]."""
    units = aligned(x, k, channels)
    return norm.rms_norm(units, torch.zeros_like(k), mantissa, shift, exponent, eps_mantissa, eps_exponent)


def layer_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, eps_mantissa: int, eps_exponent: int, channels: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As ``norm.layer_norm``; eps and channels as in ``rms_norm``."""
    eps = eps_mantissa, eps_exponent
    return norm.layer_norm(
        aligned(x, k, channels), torch.zeros_like(k), mantissa, shift, exponent, bias, bias_exponent, *eps
    )
