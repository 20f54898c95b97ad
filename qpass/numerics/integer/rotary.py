"""Rotary embedding on rows, before their quantization; tables in Q14, where 1 can be said."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.shift import mul_shift

PLACES = 14


def rotary(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """x · cos + rotate(x) · sin, rows to rows; half the integers, so that |result| <= 2^30 stays true.

    Args:
        x, k: rows [..., D].
        cos, sin: int16 or int32, Q14, |cos| < 2 as |sin|; broadcast to x.
        interleaved: channel 2i pairs with 2i + 1 instead of i with i + D / 2.
    """
    if interleaved:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    y = mul_shift(x, cos.to(torch.int32)) + mul_shift(turned, sin.to(torch.int32))
    return y, k + (PLACES - 15)
