"""Formats are data: how a tensor of numbers is stored in few bits.

A format is an integer grid, how many values share a scale, and whether there is a zero point. It prints and parses as
``int4:g128:asym``; a scheme is a format for a linear's weight and one, or none, for its input.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qpass.errors import RecipeError

_ELEMENTS = {"int4": 4, "int8": 8}
_GRANULARITIES = ("channel", "token")


@dataclass(frozen=True)
class Format:
    """One quantization format.

    Attributes:
        element: ``int4`` or ``int8``.
        granularity: ``channel`` (a scale per output channel of a weight), ``token`` (per row of an activation, computed
            when the row is seen) or ``group`` (per ``group`` consecutive inputs of an output channel).
        group: values per group, 0 unless ``granularity == "group"``. The last group of a row may be short.
        symmetric: zero point fixed at the middle, the grid symmetric about 0.
    """

    element: str
    granularity: str
    group: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.element not in _ELEMENTS:
            raise RecipeError(f"unknown element {self.element!r}", fix=_suggest(self.element, _ELEMENTS))
        if self.granularity == "group" and self.group < 2:
            raise RecipeError(f"a group of {self.group} values", fix="use a group of at least 2, for example g128")

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return _ELEMENTS[self.element]

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest code."""
        if self.symmetric:
            return 1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """Storage of unpacked codes."""
        return torch.int8 if self.symmetric else torch.uint8

    @property
    def scale_dtype(self) -> torch.dtype:
        """bfloat16 where scales are many (groups), float32 where they are few."""
        return torch.bfloat16 if self.granularity == "group" else torch.float32

    def groups(self, width: int) -> int:
        """Scales per row of ``width`` values."""
        return -(-width // self.group) if self.group else 1

    def weight_bytes(self, rows: int, width: int) -> int:
        """Bytes of a [rows, width] weight: codes, scales and zero points, packed without padding."""
        scales = rows * self.groups(width)
        zeros = 0 if self.symmetric else scales
        return (rows * width * self.bits + 7) // 8 + scales * self.scale_dtype.itemsize + zeros

    def __str__(self) -> str:
        where = f"g{self.group}" if self.granularity == "group" else self.granularity
        return f"{self.element}:{where}:{'sym' if self.symmetric else 'asym'}"

    @staticmethod
    def parse(text: str) -> Format:
        """``int8:channel:sym``, ``int8:token:asym``, ``int4:g128:asym``; RecipeError with a suggestion otherwise."""
        parts = text.split(":")
        if len(parts) != 3:
            raise RecipeError(f"{text!r} is not a format", fix="write element:granularity:sym, as in int4:g128:asym")
        element, where, symmetry = parts
        if symmetry not in ("sym", "asym"):
            raise RecipeError(f"{symmetry!r} in {text!r}", fix=_suggest(symmetry, ("sym", "asym")))
        group = re.fullmatch(r"g(\d+)", where)
        if group is None and where not in _GRANULARITIES:
            raise RecipeError(f"unknown granularity {where!r}", fix=_suggest(where, (*_GRANULARITIES, "g128")))
        granularity = "group" if group else where
        return Format(element, granularity, int(group[1]) if group else 0, symmetry == "sym")


@dataclass(frozen=True)
class Scheme:
    """What a linear computes in: a format for its weight, and for its input (None: the input stays as it is)."""

    weight: Format
    input: Format | None = None

    def __post_init__(self) -> None:
        if self.weight.granularity == "token":
            raise RecipeError("a weight has no tokens", where=str(self.weight), fix="use channel or a group")
        if self.input is not None and self.input.granularity != "token":
            raise RecipeError("inputs are quantized per token", where=str(self.input), fix="use int8:token:asym")

    def __str__(self) -> str:
        return f"{self.weight} x {self.input}" if self.input else str(self.weight)

    @staticmethod
    def parse(text: str) -> Scheme:
        """A name of ``SCHEMES``, ``w4a16-gN`` or ``w4a8-gN`` for any N, or ``weight format x input format``."""
        if text in SCHEMES:
            return SCHEMES[text]
        group = re.fullmatch(r"w4a(16|8)-g(\d+)", text)
        if group:
            return Scheme(Format("int4", "group", int(group[2]), symmetric=False), _A8 if group[1] == "8" else None)
        if ":" not in text:
            raise RecipeError(f"unknown scheme {text!r}", fix=_suggest(text, SCHEMES))
        weight, _, activation = text.partition(" x ")
        return Scheme(Format.parse(weight.strip()), Format.parse(activation.strip()) if activation else None)


_W8, _A8 = Format("int8", "channel"), Format("int8", "token", symmetric=False)
SCHEMES: dict[str, Scheme] = {
    "w8a8-int8": Scheme(_W8, _A8),
    "w8a8-int8-sym": Scheme(_W8, Format("int8", "token")),
    "w8a16": Scheme(_W8),
    **{f"w4a16-g{group}": Scheme(Format("int4", "group", group, symmetric=False)) for group in (32, 64, 128)},
    "w4a8-int8": Scheme(Format("int4", "group", 128, symmetric=False), _A8),
}
"""The field's words for common schemes."""


def _suggest(word: str, legal: Iterable[str]) -> str:
    return nearest(word, legal) or f"use one of {', '.join(legal)}"


def nearest(word: str, legal: Iterable[str]) -> str:
    """``use 'w8a8-int8'``, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.4)
    return f"use {close[0]!r}" if close else ""
