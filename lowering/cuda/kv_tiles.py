"""Sizes of attention over a cache of codes, and how many programs share the keys of a row. Compiled in the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qpass.formats import Format
from qpass.lowering.cuda.tiles import FEW, SOME, current
from qpass.numerics.kv_rows import code_bytes

MOST_SPLITS = 32
WIDEST_HEAD = 256
_PROGRAMS = 264  # two for each processor of an H100 or H200


@dataclass(frozen=True)
class Tile:
    """Rows and keys of one step, bytes of codes of a key and of a value, and whether keys are cut into ranges."""

    rows: int
    keys: int
    width: int
    v_width: int
    warps: int
    stages: int
    split: bool


def attention_tile(rows: object, width: int, v_width: int, k_format: str, v_format: str) -> Tile:
    """For a number of rows (tokens times the query heads of a key head) that may be symbolic."""
    wide = [max(power(code_bytes(Format.parse(fmt), count)), 16)
            for fmt, count in ((k_format, width), (v_format, v_width))]  # fmt: skip
    few = current(rows) in (FEW, SOME)
    return Tile(16, 32, wide[0], wide[1], 8 if max(wide) > 128 else 4, 1, few)


def splits(programs: Any, length: Any, tile: Tile) -> Any:
    """Ranges of keys: enough to fill the device, each at least one step long; both numbers may be symbolic."""
    if not tile.split:
        return 1
    wanted = torch.sym_max(_PROGRAMS // torch.sym_max(programs, 1), 1)
    return torch.sym_min(torch.sym_min(wanted, (length + tile.keys - 1) // tile.keys), MOST_SPLITS)


def power(n: int) -> int:
    """The least power of two that is not below ``n``."""
    return 1 << (n - 1).bit_length()
