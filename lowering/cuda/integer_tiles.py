"""Sizes of the row kernels and of attention of integer-only programs. Each is compiled in the tests."""

from __future__ import annotations

from dataclasses import dataclass

from qpass.lowering.cuda.tiles import FEW, PROGRAMS, current

WIDEST_ROW = 16384
"""Channels that a program keeps in registers, at 16 warps 32 in each thread."""
_WHOLE = 8192  # channels that a program takes through an activation at once: with more it would spill registers
_VALUES = 2048  # in a program of short rows
_INTERPRETED = 8192  # the interpreter takes its time for each program
MOST_KEYS = 1 << 17
"""Keys from which on the int32 sums of an attention could overflow: 2^14 for each."""
WIDEST_HEAD = 256
STEP = 32
"""Keys of one step of an attention."""
MOST_PARTS = 32
"""Programs that share the keys of a few rows at most."""
SHARE = 128
"""Keys of one of them at least, a multiple of those of one step: what is added at the end has to be worth it."""


@dataclass(frozen=True)
class RowTile:
    """Rows of a program, their width in registers, and warps."""

    rows: int
    width: int
    warps: int

    @property
    def halved(self) -> bool:
        """Whether an activation takes a row in two halves."""
        return self.width > _WHOLE


@dataclass(frozen=True)
class AttentionTile:
    """Rows (tokens times the query heads of a key head) and keys of one step, widths of heads, and warps.

    ``parts``: programs that share the keys of a tile, of ``share`` keys at least each; 1 where they are not cut.
    """

    rows: int
    keys: int
    width: int
    v_width: int
    warps: int
    parts: int
    share: int


def row_tile(n: int, *, interpreted: bool = False) -> RowTile:
    """For rows of ``n`` channels."""
    width = max(_power(n), 16)
    rows = max((_INTERPRETED if interpreted else _VALUES) // width, 1)
    return RowTile(rows, width, min(max(rows * width // 512, 1), 16))


def merge_tile(heads: int, n: int) -> RowTile:
    """For all heads of a token: ``rows`` are heads."""
    rows, width = _power(heads), max(_power(n), 16)
    return RowTile(rows, width, min(max(rows * width // 512, 1), 16))


def attention_tile(rows: object, width: int, v_width: int, pairs: object) -> AttentionTile:
    """For a number of rows that may be symbolic. ``pairs``: batch times key heads, or key heads where that is."""
    wide, few = (max(_power(width), 32), max(_power(v_width), 32)), current(rows) == FEW
    parts = min(max(PROGRAMS // pairs, 1), MOST_PARTS) if few and isinstance(pairs, int) else 1
    return AttentionTile(16 if few else 32, STEP, *wide, 8 if max(wide) > 64 else 4, _floor(parts), SHARE)


def _floor(n: int) -> int:
    return 1 << (n.bit_length() - 1)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()
