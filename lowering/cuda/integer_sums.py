"""What the integer kernels for GPUs have in registers that their ops' meanings do not: each with its largest size.

All else that they add up has the terms of the meaning, in its width, and the proof of the meaning (qpass.ranges) covers
any order and cut of them (tiles, split K, what a warp has): squares are not negative, and a product of codes may be 0
whatever its weight is, so that what a part of them can reach is within the bounds of all of them. The sum for a mean is
int64, far from its end with either sign. T: tokens; D: channels of a head; c: the largest code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qpass.lowering import Accumulator
from qpass.lowering.cuda.integer_tiles import STEP
from qpass.numerics.integer.attention import score_room

_TOP, _WEIGHT, _MANTISSA = 1 << 29, 1 << 15, 255
"""A normalized row; the largest numerator of the softmax; the largest mantissa of the cache."""


def attention(context: int, q: Tensor, *rest: Any) -> list[Accumulator]:
    """Scores with one bit more, c² · 255 · D · 2^(1 + up); what is added up of a step's keys and of all keys.

    Signed bytes of the weights times codes are at most 2^14 a key. Most lengths are known only when the kernel runs.
    """
    width, bits = int(q.shape[-1]), int(rest[9])
    code, up = (1 << (bits - 1)) - 1, score_room(width, bits)
    folded = (_WEIGHT * _MANTISSA + 128) >> 8
    return [Accumulator("a score with one bit more", width * code * code * _MANTISSA << max(1 + up, 0)),
            Accumulator("the sum of the numerators of a step", STEP * _WEIGHT),
            Accumulator("the sum of a byte of the weights times values", context << 14),
            Accumulator("both bytes of weights times values", context * folded * 127, 64)]  # fmt: skip


def gated(context: int, *args: Any) -> list[Accumulator]:
    """A product that the meaning has in parts of 15 bits."""
    return [Accumulator("a product of two rows", _TOP * _TOP + _TOP, 64)]
