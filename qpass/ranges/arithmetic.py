"""Rules of ops that work element by element: bounds of the result from bounds of the operands.

Each is exact for independent operands, unless it says otherwise. ``Rule``: (operands as values, results' context).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from qpass.ranges.value import Value, of

aten = torch.ops.aten


def corners(fn: Callable[[int, int], int], a: Value, b: Value) -> Value:
    """For a function that is monotone in each operand."""
    found = [fn(x, y) for x, y in product((a.lo, a.hi), (b.lo, b.hi))]
    return of(min(found), max(found))


def add(a: Value, b: Value) -> Value:
    """a + b."""
    return of(a.lo + b.lo, a.hi + b.hi)


def sub(a: Value, b: Value) -> Value:
    """a - b; not below zero where b is a least of a's or a a largest of b's, see ``ordered``."""
    return of(a.lo - b.hi, a.hi - b.lo)


def mul(a: Value, b: Value) -> Value:
    """a · b."""
    return corners(lambda x, y: x * y, a, b)


def shift_left(a: Value, b: Value) -> Value:
    """a << b."""
    return corners(lambda x, y: x << y, a, b)


def shift_right(a: Value, b: Value) -> Value:
    """a >> b."""
    return corners(lambda x, y: x >> y, a, b)


def floor_divide(a: Value, b: Value) -> Value:
    """floor(a / b), b > 0: ``obligations`` sees to that."""
    return corners(lambda x, y: x // y, a, b)


def negate(a: Value) -> Value:
    """-a."""
    return of(-a.hi, -a.lo)


def absolute(a: Value) -> Value:
    """|a|."""
    return of(max(a.lo, -a.hi, 0), max(a.hi, -a.lo))


def bit_and(a: Value, b: Value) -> Value:
    """a & b: with one that is not negative, 0 to that one; exact for two numbers or a mask that does nothing."""
    if a.lo == a.hi and b.lo == b.hi:
        return of(a.lo & b.lo)
    for one, two in ((a, b), (b, a)):
        if two.lo == two.hi and two.lo >= 0 and two.lo & (two.lo + 1) == 0:  # 2^n - 1
            bits = two.lo.bit_length()
            if one.lo >> bits == one.hi >> bits:
                return of(one.lo & two.lo, one.hi & two.lo)
    tops = [value.hi for value in (a, b) if value.lo >= 0]
    if tops:
        return of(0, min(tops))
    bits = max(value.bit_length() for value in (a.lo, a.hi, b.lo, b.hi))
    return of(-(1 << bits), (1 << bits) - 1)


def bit_or(a: Value, b: Value) -> Value:
    """a | b and a ^ b: as many bits as the operands have."""
    bits = max(value.bit_length() for value in (a.lo, a.hi, b.lo, b.hi))
    return of(0 if min(a.lo, b.lo) >= 0 else -(1 << bits), (1 << bits) - 1)


def least(a: Value, b: Value) -> Value:
    """min(a, b)."""
    return of(min(a.lo, b.lo), min(a.hi, b.hi))


def largest(a: Value, b: Value) -> Value:
    """max(a, b)."""
    return of(max(a.lo, b.lo), max(a.hi, b.hi))


def clamp(a: Value, low: Value | None = None, high: Value | None = None) -> Value:
    """min(max(a, low), high)."""
    a = a if low is None else largest(a, low)
    return a if high is None else least(a, high)


def where(condition: Value, a: Value, b: Value) -> Value:
    """One of the two; which, where the condition is known."""
    if condition.lo == condition.hi:
        chosen = a if condition.lo else b
        return of(chosen.lo, chosen.hi)
    return of(min(a.lo, b.lo), max(a.hi, b.hi))


def truth(always: bool, never: bool) -> Value:
    """A bool of which it may be known what it is."""
    return of(1 if always else 0, 0 if never else 1)


COMPARE: dict[str, Callable[[Value, Value], Value]] = {
    "gt": lambda a, b: truth(a.lo > b.hi, a.hi <= b.lo),
    "ge": lambda a, b: truth(a.lo >= b.hi, a.hi < b.lo),
    "lt": lambda a, b: truth(a.hi < b.lo, a.lo >= b.hi),
    "le": lambda a, b: truth(a.hi <= b.lo, a.lo > b.hi),
    "eq": lambda a, b: truth(a.lo == a.hi == b.lo == b.hi, a.lo > b.hi or a.hi < b.lo),
    "ne": lambda a, b: truth(a.lo > b.hi or a.hi < b.lo, a.lo == a.hi == b.lo == b.hi),
}

_BY_NAME: dict[str, Callable[..., Value]] = {
    "add": add, "sub": sub, "mul": mul, "neg": negate, "abs": absolute, "minimum": least, "maximum": largest,
    "bitwise_and": bit_and, "__and__": bit_and, "logical_and": bit_and, "bitwise_or": bit_or, "bitwise_xor": bit_or,
    "__or__": bit_or, "__xor__": bit_or, "bitwise_left_shift": shift_left, "__lshift__": shift_left,
    "bitwise_right_shift": shift_right, "__rshift__": shift_right, "floor_divide": floor_divide, "div": floor_divide,
    "where": where,
    "rsub": lambda a, b: sub(b, a), "clamp": clamp, "clamp_min": largest, "clamp_max": least,
    "logical_not": lambda a: truth(a.hi == 0 == a.lo, a.lo > 0 or a.hi < 0), **COMPARE,
}  # fmt: skip


def rule_of(name: str) -> Callable[..., Value] | None:
    """The rule of an ATen op by its name without overload, e.g. ``add``; None if it is no op of this kind."""
    return _BY_NAME.get(name)


DIVISIONS = ("floor_divide", "div")
SHIFTS = ("bitwise_left_shift", "__lshift__", "bitwise_right_shift", "__rshift__")


def obligations(name: str, operands: list[Any], bits: int) -> str | None:
    """What an op needs beside a result that fits, in words; None where it is given."""
    if name in DIVISIONS and operands[1].lo <= 0:
        return f"a divisor of {operands[1].lo} to {operands[1].hi}"
    if name in SHIFTS and not 0 <= operands[1].lo <= operands[1].hi < bits:
        return f"a shift by {operands[1].lo} to {operands[1].hi} of {bits} bits"
    return None
