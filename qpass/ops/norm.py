"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.ops.dialect import define


@define("rms_norm(Tensor x, Tensor? weight, float eps, float offset=0.0, bool late_cast=False) -> Tensor")
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, offset: float = 0.0, late_cast: bool = False) -> Tensor:
    """y = (offset + w) · x / sqrt(mean(x², -1) + eps), the mean in float32 (Zhang & Sennrich 2019).

    Args:
        x: [..., H] of any float dtype.
        weight: [H], or None for no weight.
        offset: 0, or 1 where the weight is stored less one.
        late_cast: multiply by the weight in float32 and round once, instead of rounding before it.
    """
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return h.to(x.dtype)
    if not late_cast:
        return weight * h.to(x.dtype)
    scale = weight.to(torch.float32)
    return (h * (scale + offset if offset else scale)).to(x.dtype)


@define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor")
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """y = w · (x - mean) / sqrt(var + eps) + b over the last dimension (Ba et al. 2016). x: [..., H]; w, b: [H]."""
    return torch.ops.aten.layer_norm.default(x, [x.shape[-1]], weight, bias, eps)
