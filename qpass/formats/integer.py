"""What an integer-only recipe says beside its linears, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qpass.errors import RecipeError
from qpass.formats.words import nearest

MODES = ("precise", "paper", "literal")
CONTEXT = 2048
"""Positions where the recipe names none, and the model's own tables have no fewer."""
CLIP = 15.0
"""c of the paper, for the modes that are after it."""


@dataclass(frozen=True)
class Integer:
    """Options of an integer-only program.

    Attributes:
        mode: which set of integer operators, see docs/integer.md.
        attention: bits of the codes of queries, keys and values, 2 to 8.
        embedding: bits of the codes of embedding tables, 8 or 16.
        context: positions that there are tables for; longer inputs are refused. None for 2048, or as many as the
            model's own table of positions has.
        clip: c of the clipped softmax, 0 for no clip; None for what the mode has, 15 or, in ``precise``, none. In
            ``precise`` a score further than c below the row's maximum counts as zero, in the others as one at c.
        mantissa: bits of the mantissas of dyadic scales of activations and weights, 15 or the paper's 8.
    """

    mode: str = "precise"
    attention: int = 8
    embedding: int = 16
    context: int | None = None
    clip: float | None = None
    mantissa: int = 15

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise _bad("mode", self.mode, f"use one of {', '.join(MODES)}")
        if not _whole(self.attention) or not 2 <= self.attention <= 8:
            raise _bad("attention", self.attention, "use 2 to 8 bits")
        if self.embedding not in (8, 16) or not _whole(self.embedding):
            raise _bad("embedding", self.embedding, "use 8 or 16 bits")
        if self.context is not None and not (_whole(self.context) and 1 <= self.context <= 1 << 20):
            raise _bad("context", self.context, "use 1 to 1048576 positions")
        number = isinstance(self.clip, int | float) and not isinstance(self.clip, bool)
        if self.clip is not None and not (number and 0 <= self.clip <= 1000):
            raise _bad("clip", self.clip, "use a number such as 15, or 0 for no clip")
        if self.mantissa not in (8, 15) or not _whole(self.mantissa):
            raise _bad("mantissa", self.mantissa, "use 15 or 8 bits")

    @property
    def positions(self) -> int:
        """``context``, or 2048."""
        return CONTEXT if self.context is None else self.context

    @property
    def clipped(self) -> float:
        """c; 0 for no clip."""
        return self.clip if self.clip is not None else 0.0 if self.mode == "precise" else CLIP

    @property
    def static(self) -> bool:
        """Whether inputs of norms have static scales, one a channel, which calibration data must give."""
        return self.mode != "precise"

    @staticmethod
    def parse(given: Any) -> Integer | None:
        """None, True, a mapping of fields, or an ``Integer``. Raises RecipeError with the nearest legal word."""
        if given is None or given is False or isinstance(given, Integer):
            return given or None
        if given is True:
            return Integer()
        if not isinstance(given, Mapping):
            raise RecipeError(f"{given!r} is no set of options", where="integer", fix="write true, or {context: 4096}")
        known = [field.name for field in fields(Integer)]
        for name in given:
            if name not in known:
                fix = nearest(str(name), known) or f"use {', '.join(known)}"
                raise RecipeError(f"unknown option {name!r}", where="integer", fix=fix)
        return Integer(**given)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that ``parse`` reads back: what differs from the default."""
        return {field.name: value for field in fields(Integer) if (value := getattr(self, field.name)) != field.default}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(name: str, value: Any, fix: str) -> RecipeError:
    return RecipeError(f"{name} is {value!r}", where="integer", fix=fix)
