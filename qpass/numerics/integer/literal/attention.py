"""DI-ClippedSoftmax, Algorithm 2: scores clipped at max - c and floored to eight bits, p of seven.

    p_min = max(p_min, p_max - c^I);   x = Y - D;   E = DI-Exp(x);   p = floor(E 2^7 / sum E)
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.attention import Weights, attend
from qpass.numerics.integer.literal.exp import di_exp
from qpass.numerics.integer.literal.requant import scale_of
from qpass.numerics.integer.paper.attention import span
from qpass.numerics.integer.softmax import LEAST

MOST = 255
OUT = 7
_PLACES = 8


def probabilities(
    scores: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int
) -> Tensor:
    """p int32 [..., S], 0 to 2^7; rows sum to 2^7 less what was floored. ``clip``, scores times c: not in base 2."""
    del table
    top = torch.where(keep, scores, torch.full_like(scores, LEAST)).amax(-1, keepdim=True)
    distance = torch.where(keep, top - scores, torch.zeros_like(scores)).clamp(min=0)
    extent = distance.amax(-1, keepdim=True).clamp(min=1)
    if clip:
        extent = torch.minimum(extent, span(clip, c_mantissa, c_exponent))
    wide, above = extent.to(torch.int64), (extent - torch.minimum(distance, extent)).to(torch.int64)
    m, k = scale_of(wide, c_mantissa.to(torch.int64), c_exponent.to(torch.int64), MOST)
    x = (above * MOST // wide).clamp(max=MOST) - MOST
    e = torch.where(keep, di_exp(x, m, k)[0], torch.zeros_like(x))
    return ((e << OUT) // e.sum(-1, keepdim=True).clamp(min=1)).clamp(max=1 << OUT).to(torch.int32)


def _weights(
    scores: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int
) -> Weights:
    p = probabilities(scores, keep, c_mantissa, c_exponent, table, clip)
    return p << _PLACES, torch.full_like(p[..., :1], 1 << (OUT + _PLACES), dtype=torch.int64)


def attention(*args: Tensor, **options: int) -> tuple[Tensor, Tensor]:
    """As ``numerics.integer.attention.attention``, but the scale of the scores is that of e^x, not of 2^x."""
    return attend(_weights, *args, **options)
