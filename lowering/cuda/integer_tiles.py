"""Sizes of the row kernels and of attention of integer-only programs. Each is compiled in the tests."""

from __future__ import annotations

from dataclasses import dataclass

from qpass.lowering.cuda.tiles import FEW, current

WIDEST_ROW = 16384
"""Channels that a program keeps in registers, at 16 warps 32 in each thread."""
_VALUES = 2048  # in a program of short rows
_INTERPRETED = 8192  # the interpreter takes its time for each program
MOST_KEYS = 1 << 17
"""Keys from which on the int32 sums of an attention could overflow: 2^14 for each."""
WIDEST_HEAD = 256


@dataclass(frozen=True)
class RowTile:
    """Rows of a program, their width in registers, and warps."""

    rows: int
    width: int
    warps: int


@dataclass(frozen=True)
class AttentionTile:
    """Rows (tokens times the query heads of a key head) and keys of one step, widths of heads, and warps."""

    rows: int
    keys: int
    width: int
    v_width: int
    warps: int


def row_tile(n: int, *, interpreted: bool = False) -> RowTile:
    """For rows of ``n`` channels."""
    width = max(_power(n), 16)
    rows = max((_INTERPRETED if interpreted else _VALUES) // width, 1)
    return RowTile(rows, width, min(max(rows * width // 512, 1), 16))


def merge_tile(heads: int, n: int) -> RowTile:
    """For all heads of a token: ``rows`` are heads."""
    rows, width = _power(heads), max(_power(n), 16)
    return RowTile(rows, width, min(max(rows * width // 512, 1), 16))


def attention_tile(rows: object, width: int, v_width: int) -> AttentionTile:
    """For a number of rows that may be symbolic."""
    wide = max(_power(width), 32), max(_power(v_width), 32)
    return AttentionTile(16 if current(rows) == FEW else 32, 32, *wide, 8 if max(wide) > 128 else 4)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
