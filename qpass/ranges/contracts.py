"""Helpers with a meaning in closed form: their results are known better than the bounds of their steps say.

Their steps are still looked at, one by one, for overflow. That each helper equals its meaning is proven in
tests/ranges/test_contracts.py: by algebra for the products, exhaustively or on random and extreme operands for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from qpass.ranges.arithmetic import corners
from qpass.ranges.value import Value, of

_FAR = 200  # shifts beyond it say nothing new


def round_shift(a: int, k: int) -> int:
    """RSH(a, k) of integers without a width."""
    k = max(-_FAR, min(k, _FAR))
    return (a + (1 << (k - 1))) >> k if k > 0 else a << -k


def top_bit(v: int) -> int:
    """floor(log2 v), 0 for v < 1."""
    return max(v, 1).bit_length() - 1


def _rsh(a: Value, k: Value) -> Value:
    """Monotone in a; toward zero in k."""
    return corners(round_shift, a, k)


def _mul_shift(a: Value, b: Value, s: Value) -> Value:
    products = corners(lambda x, y: x * y, a, b)
    return of(round_shift(products.lo, s.lo), round_shift(products.hi, s.lo))


def _mul_high(a: Value, b: Value) -> Value:
    return _mul_shift(a, b, of(30))


def _msb(v: Value) -> Value:
    return of(top_bit(v.lo), top_bit(v.hi))


def _isqrt(v: Value, steps: Value) -> Value:
    """Floor of the root while v is below 2^(2 · steps); no claim beyond."""
    if v.lo < 0 or v.hi >= 1 << (2 * steps.lo):
        return of(-(1 << 64), 1 << 64)
    return of(math.isqrt(v.lo), math.isqrt(v.hi))


CONTRACTS: dict[str, tuple[Callable[..., Value], tuple[tuple[str, int | None], ...]]] = {
    "rsh": (_rsh, (("a", None), ("k", None))),
    "mul_shift": (_mul_shift, (("a", None), ("b", None), ("s", 15))),
    "mul_high": (_mul_high, (("a", None), ("b", None))),
    "msb": (_msb, (("v", None),)),
    "isqrt": (_isqrt, (("v", None), ("steps", 16))),
}
"""Helper -> (bounds of its result, its parameters with their defaults)."""
