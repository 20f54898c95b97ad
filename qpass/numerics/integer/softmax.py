"""Softmax with the division put off (DI-ClippedSoftmax, repaired): numerators in Q15, and their sum.

    z = (max - a) · c,  e = 2^-z,   sum e;   1 / sum is a factor of the row, and goes where the row's scale goes

Masked scores are left out by predicate: of the maximum, of z and of the sum. A score below max - clip counts as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer.exp2 import exp2_negative, to_q15
from qpass.numerics.integer.shift import mul_shift

LEAST = -(2**30)
"""Below every score, and near enough to take one from it."""


def softmax_numerators(
    scores: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int = 0
) -> Tensor:
    """e int32 [..., S], 0 to 2^15; 0 where masked, and everywhere in a row that is masked whole.

    Args:
        scores: int32 [..., S], |a| <= 2^29.
        keep: bool, broadcast to scores; False is masked.
        c_mantissa, c_exponent: int32 [..., 1]: log2(e) times the scale of the row, mantissa below 2^16.
        table: ``exp2.TABLE``.
        clip: base-2 Q15 distance from the maximum from which on e is 0; 0 for none.
    """
    top = torch.where(keep, scores, torch.full_like(scores, LEAST)).amax(-1, keepdim=True)
    distance = (top - scores).clamp(min=0)  # not negative where it is read
    z = to_q15(mul_shift(distance, c_mantissa), c_exponent - 30)
    kept = keep & (z < clip) if clip else keep
    return torch.where(kept, exp2_negative(z, table), torch.zeros_like(z))
