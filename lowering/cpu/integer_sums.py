"""What the integer kernels add up that their ops' meanings do not: each number with its largest size.

The kernels' other steps are those of the meaning, on the same numbers and in the same width, so the proof of the
meaning (qpass.ranges) is theirs too. K: products of a sum; T: tokens; n: channels; c: the largest code. VNNI and AMX
add u8 · s8 at full width in any order, and each part of such a sum is within the bound of the whole.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qpass.lowering import Accumulator
from qpass.numerics.integer.attention import score_room

TOP, MOST_HALF = 1 << 29, 1 << 30
"""A normalized row; 2^(k-1) for the largest shift k = 31, which RSH adds before it shifts."""
LANES, CHUNK = 16, 1 << 16
"""Numbers a vector holds; keys after which attention widens its sums of values (integer_attention.cpp)."""
LOW_HALF, BYTE, MANTISSA_8, MANTISSA_15 = (1 << 16) - 1, 255, 255, (1 << 15) - 1
WEIGHT = 1 << 15
"""The largest numerator of the softmax."""


def linear(context: int, *args: Any) -> list[Accumulator]:
    """255 · 128 · K: codes have 128 added, so that they have no sign; that and the zero point are taken off again."""
    products = int(args[4].shape[-1]) * BYTE * 128
    channel = (MOST_HALF >> 15) * MANTISSA_15 + 1
    halves = MOST_HALF + (1 << 16)  # of Factor in integer_math.h, whose operand is rounded at bit 16
    return [Accumulator("the sum of unsigned codes times weights", products),
            Accumulator("the zero point times the sum of a weight's row", products),
            Accumulator("halves of a product of 30 by 15 bits", halves),
            Accumulator("a channel's product and what rounds it", channel + MOST_HALF)]  # fmt: skip


def attention(
    context: int, q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, *rest: Any
) -> list[Accumulator]:
    """Scores c² · 255 · D, shifted; e of a lane 2^15 · T / 16; bytes of weights and values 255 · 127 · min(T, 2^16)."""
    width, bits = int(q.shape[-1]), int(rest[5])
    code, up = (1 << (bits - 1)) - 1, max(0, score_room(width, bits))
    chunk, lane = min(context, CHUNK), -(-context // LANES)
    folded = (WEIGHT * MANTISSA_8 + 128) >> 8
    return [
        Accumulator("-128 times the sum of a key", 128 * code * width),
        Accumulator("a score times the key's mantissa, and what rounds it",
                    (width * code * code * MANTISSA_8 << up) + MOST_HALF),
        Accumulator("the distance of two scores in octaves, and what rounds it", MOST_HALF + MOST_HALF, 33),
        Accumulator("a weight times the value's mantissa, and what rounds it", WEIGHT * MANTISSA_8 + MOST_HALF),
        Accumulator("the sum of numerators in a lane", lane * WEIGHT),
        Accumulator("the sum of weights in a lane", lane * folded),
        Accumulator("low bytes of weights times values", chunk * BYTE * 127),
        Accumulator("high bytes of weights times values", chunk * (folded >> 8) * 127),
        Accumulator("both bytes of weights times values", context * folded * 127, 64),
    ]  # fmt: skip


def norm(context: int, x: Tensor, *rest: Any) -> list[Accumulator]:
    """Halves of squares of 15 bits, of all channels: n · (2^16 - 1) and n · 2^14."""
    n = int(x.shape[-1])
    return [Accumulator("low halves of squares", n * LOW_HALF), Accumulator("high halves of squares", n << 14)]


def layer_norm(context: int, x: Tensor, *rest: Any) -> list[Accumulator]:
    """As ``norm``; and halves of the row's numbers, for its mean."""
    n = int(x.shape[-1])
    return [*norm(context, x), Accumulator("low halves of a row", n * LOW_HALF),
            Accumulator("high halves of a row", n * (TOP >> 16)),
            Accumulator("a row less its mean", 2 * TOP)]  # fmt: skip


def activation(context: int, *args: Any) -> list[Accumulator]:
    """Steps of the sigmoid and of GELU's polynomial on |x| at most 6 in Q12, each with what rounds it."""
    square = 36 << 12
    return [Accumulator("an argument in octaves, and what rounds it", MOST_HALF + MOST_HALF, 33),
            Accumulator("2^-z and what rounds it", WEIGHT + MOST_HALF),
            Accumulator("the fourth power of GELU's argument", (square >> 2) ** 2 + (1 << 15)),
            Accumulator("GELU's argument times its slope", (6 << 12) * (13073 + (square * 2412 >> 14)) + (1 << 13)),
            Accumulator("what is left of the sigmoid's division", MOST_HALF + 13 * 2 * WEIGHT),
            Accumulator("a product of two rows", TOP * TOP + TOP, 64)]  # fmt: skip
