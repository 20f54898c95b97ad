"""The nearest legal word, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 12


def nearest(word: str, legal: Iterable[str]) -> str:
    """``use 'w8a8-int8'``, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.4)
    return f"use {close[0]!r}" if close else ""


def suggest(word: str, legal: Iterable[str]) -> str:
    """The nearest legal word, or all of them, or the first few and where the rest is."""
    words = list(legal)
    few = ", ".join(words if len(words) <= _FEW else words[:_FEW])
    return nearest(word, words) or f"use one of {few}{'' if len(words) <= _FEW else ', ... (python -m qpass list)'}"
