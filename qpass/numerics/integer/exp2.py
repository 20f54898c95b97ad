"""2^-z by a table of 32 and linear interpolation (DI-Exp, repaired): monotone, within 1.6e-4 of the function."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.shift import rsh

ONE = 1 << 15
LOG2E = 47274
"""log2(e) in Q15."""
TABLE = tuple(round(ONE * 2 ** (-j / 32)) for j in range(33))


@helper
def exp2_negative(z: Tensor, table: Tensor) -> Tensor:
    """round(2^15 · 2^(-z / 2^15)), 0 to 2^15.

    Args:
        z: int32, 0 to 2^30, Q15.
        table: int32 [33], ``TABLE``.
    """
    fraction = z & (ONE - 1)
    index, rest = case(fraction >> 10), fraction & 1023
    high, low = table[index], table[index + 1]
    return rsh(high - rsh((high - low) * rest, 10), z >> 15)


def to_q15(u: Tensor, shift: Tensor) -> Tensor:
    """RSH(u, shift) for u >= 0, but at most 2^20: 32 octaves, where 2^-z is 0."""
    left = (-shift).clamp(0, 20)
    first = left.clamp(max=10)
    wide = (rsh(u, shift.clamp(min=0)).clamp(max=1 << 20) << first).clamp(max=1 << 20)
    return (wide << (left - first)).clamp(max=1 << 20)
