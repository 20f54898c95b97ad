"""What is known of a tensor: bounds of every element, and a few facts that bounds alone would lose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qpass.errors import QPassError

Part = tuple[int, int, int]
FREE, ROW, ELEMENT = 0, 1, 2
_SERIALS = itertools.count(1)


class Impossible(QPassError):
    """A case that cannot happen: no number is within its bounds."""


@dataclass(frozen=True)
class Value:
    """lo <= every element <= hi, as integers without a width.

    Attributes:
        parts: (width, lo, hi) of pieces of the last dimension, where they differ by what they mean (a cache).
        channels: lo and hi, int64 [C], of each channel of the last dimension.
        sum: a bound of the sum of |x| over the last dimension.
        const: the tensor itself, for parameters.
        made: the rule's name and the operands, for going backward from a case.
        serial: tells one parameter from another.
        grain: within a case, whether the bounds hold for rows (ROW) or elements (ELEMENT) of that case only.
    """

    lo: int
    hi: int
    parts: tuple[Part, ...] | None = None
    channels: tuple[Tensor, Tensor] | None = None
    sum: int | None = None
    const: Tensor | None = field(default=None, compare=False)
    made: tuple[str, tuple[Any, ...]] | None = field(default=None, compare=False)
    grain: int = FREE
    serial: Any = 0

    def key(self) -> Any:
        """What the result of an op may depend on."""
        return self.lo, self.hi, self.parts, self.sum, self.serial, self.grain

    def plain(self, grain: int = FREE) -> Value:
        """The facts that outlive the op which made them."""
        return replace(self, made=None, grain=grain)


def of(lo: int, hi: int | None = None) -> Value:
    """A number, or what lies between two. Raises Impossible for none."""
    hi = lo if hi is None else hi
    if lo > hi:
        raise Impossible(f"nothing is between {lo} and {hi}")
    return Value(lo, hi)


def of_tensor(tensor: Tensor) -> Value:
    """A parameter."""
    small = tensor.numel() <= 64  # told apart by what it holds, so that programs share what is known of it
    serial = (str(tensor.dtype), tuple(tensor.shape), tuple(tensor.flatten().tolist())) if small else next(_SERIALS)
    if tensor.numel() == 0:
        return Value(0, 0, const=tensor, serial=serial)
    low, high = tensor.aminmax() if tensor.dtype != torch.bool else (tensor.min(), tensor.max())
    return Value(int(low), int(high), const=tensor, serial=serial)


def hull(values: Sequence[Value]) -> Value:
    """What holds for all of them."""
    lo, hi = min(value.lo for value in values), max(value.hi for value in values)
    first, grain = values[0], max(value.grain for value in values)
    parts = None
    if all(value.parts is not None and first.parts is not None
           and [part[0] for part in value.parts] == [part[0] for part in first.parts] for value in values):  # fmt: skip
        columns = zip(*(value.parts or () for value in values))
        parts = tuple((column[0][0], min(p[1] for p in column), max(p[2] for p in column)) for column in columns)
    sums = [value.sum for value in values]
    return Value(lo, hi, parts, sum=None if None in sums else max(sums), grain=grain)  # type: ignore[type-var]
