"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.ops.dialect import define


@define("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor")
def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """y = x · cos + rotate(x) · sin (Su et al. 2021).

    Args:
        x: [..., D]; cos, sin: broadcast to x.
        interleaved: channel 2i pairs with 2i+1 instead of i with i + D/2.
    """
    if interleaved:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos) + (turned * sin)
