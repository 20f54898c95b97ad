"""What an attention computes in: a format for each of its operands, and the field's words for common ones.

    y = softmax(scale · q̂ k̂ᵀ + mask) → p̂ v̂        x̂: quantized and dequantized, each row on its own

    q, k, v   [..., tokens, head]: a row is one token of one head, after rotary embedding
    p         [..., queries, keys]: a row is what one query gives to all keys, after the softmax

A row's codes depend on the row alone. So it is the same whether keys are rounded one by one as they come or all of them
when they are read, and prefill and decode agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qpass.errors import RecipeError
from qpass.formats.format import Format
from qpass.formats.scheme import check_input
from qpass.formats.words import nearest

OPERANDS = ("q", "k", "v", "p")
WORDS = ("kvN", "qkvN", "kvNpM", "qkvNpM")
"""How words are printed: N bits for these operands, M for p; each row with a zero point."""
_WORD = re.compile(r"(q?kv)([2-8])(?:p([2-8]))?")


@dataclass(frozen=True)
class AttentionScheme:
    """Formats of queries, keys, values, and of the softmax's result. None: as it is."""

    q: Format | None = None
    k: Format | None = None
    v: Format | None = None
    p: Format | None = None

    def __post_init__(self) -> None:
        if not self.formats:
            raise RecipeError("an attention with no format", fix='write {"k": "int8:token:asym"}, or keep')
        for operand, fmt in self.formats.items():
            where = f"{operand}: {fmt}"
            check_input(fmt, where)
            if fmt.granularity == "tensor":
                raise RecipeError("one scale for all tokens: they would differ between prefill and decode",
                                  where=where, fix="use token, or groups as in int4:g32:asym:f32")  # fmt: skip
            if operand == "p" and fmt.granularity != "token":
                raise RecipeError("groups of keys", where=where, fix="use token: a row has as many values as keys")

    @property
    def formats(self) -> dict[str, Format]:
        """By operand, those that there are."""
        return {operand: fmt for operand in OPERANDS if (fmt := getattr(self, operand)) is not None}

    def as_data(self) -> dict[str, str]:
        """Plain data that ``parse`` reads back."""
        return {operand: str(fmt) for operand, fmt in self.formats.items()}

    def __str__(self) -> str:
        return ", ".join(f"{operand} {fmt}" for operand, fmt in self.formats.items())

    @staticmethod
    def parse(data: Any) -> AttentionScheme:
        """From a word, ``qkv4`` or ``kv8p8``, or from a mapping of operands to formats.

        Raises:
            RecipeError: with the nearest legal word.
        """
        if isinstance(data, str):
            return _word(data)
        if not isinstance(data, Mapping):
            raise RecipeError(f"{data!r} is no attention", fix="write a word such as 'qkv8', a mapping, or keep")
        for operand in data:
            if operand not in OPERANDS:
                raise RecipeError(f"unknown operand {operand!r} of an attention", fix=f"use {', '.join(OPERANDS)}")
        return AttentionScheme(**{str(operand): _format(fmt) for operand, fmt in data.items()})


def is_word(text: str) -> bool:
    """Whether a text is one of ``WORDS`` with its numbers."""
    return _WORD.fullmatch(text) is not None


def _word(text: str) -> AttentionScheme:
    found = _WORD.fullmatch(text)
    if found is None:
        close = nearest(text, ("kv4", "kv8", "qkv4", "qkv8", "kv8p8", "qkv8p8"))
        raise RecipeError(f"unknown attention {text!r}", fix=close or f"use one of {', '.join(WORDS)}, or a mapping")
    operands, bits, of_p = found.groups()
    formats = {operand: Format(f"int{bits}", "token", symmetric=False) for operand in operands}
    if of_p:
        formats["p"] = Format(f"int{of_p}", "token", symmetric=False)
    return AttentionScheme(**formats)


def _format(data: Any) -> Format | None:
    if data is None or data == "keep" or isinstance(data, Format):
        return None if data == "keep" else data
    if not isinstance(data, str):
        raise RecipeError(f"{data!r} is no format", fix="write a format such as 'int8:token:asym', or keep")
    return Format.parse(data)
