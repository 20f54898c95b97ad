"""Rows -> codes with one static scale a channel, as the paper's DI-Norm reads its input, and back to one scale.

``channels``: int32 [4, C], made when a model is compiled: mantissa (15 bits) and exponent of 1 / s_c, the zero point,
and the factor that brings s_c to the scale all channels share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.rows import normalize
from qpass.numerics.integer.shift import mul_shift, rsh

MOST = 255
_BEYOND = 2 * MOST  # what is shifted left saturates first: it is clipped anyway


def channel_codes(x: Tensor, k: Tensor, channels: Tensor) -> Tensor:
    """code - zero, int32 [..., C], |.| <= 255: x / s_c to nearest, clipped to 0..255 about the zero point."""
    inverse, exponent, zero, _ = channels.unbind(0)
    x, k = normalize(x, k)
    y, places = mul_shift(x, inverse), k + exponent - 15
    left = y.clamp(-_BEYOND, _BEYOND) << (-places).clamp(0, 20)
    y = torch.where(places < 0, left, rsh(y, places.clamp(min=0)))
    return (y + zero).clamp(0, MOST) - zero


def aligned(x: Tensor, k: Tensor, channels: Tensor) -> Tensor:
    """int32 [..., C] in units of the shared scale: codes times their factor, |.| <= 2^30 for factors below 2^22."""
    return channel_codes(x, k, channels) * channels[3]
