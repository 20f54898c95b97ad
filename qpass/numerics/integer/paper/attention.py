"""DI-ClippedSoftmax on eight bits: scores of [max - c, max] as 256 codes a row, probabilities as eight bits.

    x = codes of (a - max) in [-c, 0];   e = 2^(x s log2 e);   P = (255 e + S / 2) div S,  S = sum e
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.attention import Weights, attend
from qpass.numerics.integer.exp2 import exp2_negative, to_q15
from qpass.numerics.integer.quantize import quantize_rows
from qpass.numerics.integer.shift import mul_shift, rsh
from qpass.numerics.integer.softmax import LEAST

MOST = 255
_MANTISSA = 8
_PLACES = 7  # probabilities are shifted left before the scales of the values are folded in, which then costs no bits
_FARTHEST = 1 << 30


def span(clip: int, c_mantissa: Tensor, c_exponent: Tensor) -> Tensor:
    """The clip in units of a row's scores, int32, 1 to 2^30.

    Args:
        clip: Q15, in the unit that scores times c have.
        c_mantissa, c_exponent: int32, the scale of the row.
    """
    up = 30 - clip.bit_length()
    quotient = torch.full_like(c_mantissa, clip << up if up >= 0 else clip >> -up) // c_mantissa
    places = up + 15 - c_exponent
    return rsh(quotient.to(torch.int64), places.clamp(min=-31)).clamp(1, _FARTHEST).to(torch.int32)


def probabilities(
    scores: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int
) -> Tensor:
    """P int32 [..., S], 0 to 255, rows sum to about 255. Arguments as in ``softmax.softmax_numerators``.

    ``clip``: base-2 Q15; a score beyond counts as one at the clip, as published; 0 for the whole range of the row.
    """
    top = torch.where(keep, scores, torch.full_like(scores, LEAST)).amax(-1, keepdim=True)
    below = torch.where(keep, scores - top, torch.zeros_like(scores)).clamp(1 - _FARTHEST, 0)
    if clip:
        below = torch.maximum(below, -span(clip, c_mantissa, c_exponent))
    codes, zero, m, k = quantize_rows(below, torch.zeros_like(top), 8, False, _MANTISSA)
    distance = (zero - codes).clamp(min=0) * m  # 16 bits
    z = to_q15(mul_shift(distance << 14, c_mantissa), k + c_exponent - 16)
    e = torch.where(keep, exp2_negative(z, table), torch.zeros_like(z))
    total = e.sum(-1, keepdim=True, dtype=torch.int64).clamp(min=1)
    return ((e.to(torch.int64) * MOST + (total >> 1)) // total).clamp(max=MOST).to(torch.int32)


def _weights(
    scores: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int
) -> Weights:
    p = probabilities(scores, keep, c_mantissa, c_exponent, table, clip)
    return p << _PLACES, torch.full_like(p[..., :1], MOST << _PLACES, dtype=torch.int64)


def attention(*args: Tensor, **options: int) -> tuple[Tensor, Tensor]:
    """As ``numerics.integer.attention.attention``."""
    return attend(_weights, *args, **options)
