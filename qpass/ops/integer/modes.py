"""Sets of operators by name. Each op looks up its own in a table of this shape: mode -> function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qpass.errors import UnsupportedError


def form(table: Mapping[str, Callable[..., Any]], mode: str) -> Callable[..., Any]:
    """The function of ``mode``. Raises UnsupportedError for one that has none."""
    if mode not in table:
        raise UnsupportedError(f"no integer operators for the mode {mode!r}", fix=f"use one of {', '.join(table)}")
    return table[mode]
