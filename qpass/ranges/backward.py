"""From what a case says of a number, back to what the number was made of.

``msb(largest(|x|)) = b`` says that the row's largest is below 2^(b+1), so every |x| of that row is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from qpass.ranges.value import Impossible, Value

_SAME = ("view", "_unsafe_view", "reshape", "unsqueeze", "_to_copy", "clone", "alias", "squeeze")
_MORE = 1 << 200


class Facts(Protocol):
    """The table that is made narrower."""

    def look(self, tensor: Any) -> Value:
        """What is known of an operand."""

    def narrow(self, tensor: Tensor, value: Value) -> None:
        """Know more of a tensor."""


def refine(facts: Facts, tensor: Any, lo: int, hi: int, grain: int) -> None:
    """``tensor`` lies in lo..hi, for rows or elements of one case. Raises Impossible if it cannot."""
    if not isinstance(tensor, Tensor):
        return
    known = facts.look(tensor)
    if lo <= known.lo and hi >= known.hi:
        return
    lo, hi = max(lo, known.lo), min(hi, known.hi)
    if lo > hi:
        raise Impossible(f"nothing is between {lo} and {hi}")
    facts.narrow(tensor, replace(known, lo=lo, hi=hi, parts=None, channels=None, grain=max(grain, known.grain)))
    if known.made is not None:
        name, operands = known.made
        step = _STEPS.get("same" if name in _SAME else name)
        if step is not None:
            step(facts, operands, lo, hi, grain)


Step = Callable[[Facts, tuple[Any, ...], int, int, int], None]


def _largest(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    refine(facts, operands[0], -_MORE, hi, grain)


def _least(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    refine(facts, operands[0], lo, _MORE, grain)


def _absolute(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    refine(facts, operands[0], -hi, hi, grain)


def _same(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    refine(facts, operands[0], lo, hi, grain)


def _msb(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    refine(facts, operands[0], 1 << lo if lo > 0 else -_MORE, (1 << (hi + 1)) - 1, grain)


def _clamp(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    """What is strictly inside of the clamp is what it was."""
    low, high = (facts.look(part) if part is not None else None for part in (*operands[1:], None, None)[:2])
    refine(facts, operands[0], lo if low is None or lo > low.hi else -_MORE,
           hi if high is None or hi < high.lo else _MORE, grain)  # fmt: skip


def _sub(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    a, b = (facts.look(part) for part in operands[:2])
    refine(facts, operands[0], lo + b.lo, hi + b.hi, grain)
    refine(facts, operands[1], a.lo - hi, a.hi - lo, grain)


def _sum(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    """A sum over a row of what is not negative bounds what stands under it."""
    known = facts.look(operands[0])
    if known.lo >= 0 and operands[-1] == "last":
        facts.narrow(operands[0], replace(known, sum=hi, hi=min(known.hi, hi), grain=max(grain, known.grain)))


def _shift_right(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    by = facts.look(operands[1])
    if by.lo == by.hi:
        refine(facts, operands[0], lo << by.lo, ((hi + 1) << by.lo) - 1, grain)


def _floor_divide(facts: Facts, operands: tuple[Any, ...], lo: int, hi: int, grain: int) -> None:
    """lo <= floor(a / d) <= hi for positive a, d: d is above a / (hi + 1), and at most a / lo."""
    above = facts.look(operands[0])
    if above.lo > 0 and facts.look(operands[1]).lo > 0:
        refine(facts, operands[1], above.lo // (hi + 1) + 1, above.hi // lo if lo > 0 else _MORE, grain)


_STEPS: dict[str, Step] = {
    "amax": _largest, "amin": _least, "abs": _absolute, "same": _same, "msb": _msb, "clamp": _clamp, "sub": _sub,
    "sum": _sum, "floor_divide": _floor_divide, "bitwise_right_shift": _shift_right, "__rshift__": _shift_right,
}  # fmt: skip
