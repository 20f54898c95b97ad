"""Tile sizes by kernel and number of rows. Each is compiled in the tests, which hold its registers and instructions.

Rows of inputs come in buckets: up to 16 and up to 64 a weight is read once and split K fills the device; above, tiles
of 128 rows; from ``DENSE`` rows on 4-bit weights are first written out dense, and the dense dot is Inductor's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from qpass.lowering.cuda.candidates import TILES

FEW, SOME, DENSE = 16, 64, 1024
BUCKETS = (FEW, SOME, DENSE)
"""Upper ends; what is above the last is a bucket of its own. ``None`` stands for it."""

PROGRAMS = 264  # two for each processor of an H100 or H200
_MAX_SPLITS = 8

_bucket: ContextVar[int | None] = ContextVar("rows of the graph that is being compiled", default=None)
_tuned: ContextVar[bool] = ContextVar("whether tiles are chosen by trying them", default=False)


@dataclass(frozen=True)
class Tile:
    """BM rows of inputs, BN of weights, and what goes with them."""

    bm: int
    bn: int
    warps: int
    stages: int


FOUR_BIT = {FEW: Tile(16, 128, 4, 4), SOME: Tile(64, 64, 4, 3), None: Tile(128, 128, 8, 3)}
WIDE_BLOCK = {FEW: Tile(16, 128, 4, 3), SOME: Tile(64, 64, 4, 3), None: Tile(128, 128, 8, 3)}
PART_GROUP = {FEW: Tile(16, 128, 4, 3), SOME: Tile(64, 64, 4, 3), None: Tile(64, 128, 8, 3)}
EIGHT_BIT = {FEW: Tile(16, 64, 4, 6), SOME: Tile(64, 64, 4, 5), None: Tile(128, 128, 8, 3)}
FP8_BLOCK = {FEW: Tile(16, 128, 4, 5), SOME: Tile(64, 64, 4, 5), None: Tile(128, 128, 8, 4)}


def bucket_of(rows: int) -> int | None:
    """The bucket that ``rows`` is in."""
    return next((most for most in BUCKETS if rows <= most), None)


@contextlib.contextmanager
def compiling_for(bucket: int | None, *, tuned: bool = False) -> Iterator[None]:
    """Graphs traced inside, whose number of rows is not known, are for rows of this bucket.

    ``tuned``: a kernel is given its candidates, and Inductor times them on the GPU when it first runs.

    Kernels up to ``SOME`` rows are right for that many only; whoever compiles for a bucket calls it for its rows.
    """
    token, other = _bucket.set(bucket), _tuned.set(tuned)
    try:
        yield
    finally:
        _bucket.reset(token)
        _tuned.reset(other)


def current(rows: object) -> int | None:
    """The bucket of a number of rows, which may be symbolic: then that of ``compiling_for``."""
    return bucket_of(rows) if isinstance(rows, int) else _bucket.get()


def tile(table: dict[int | None, Tile], bucket: int | None, *, warp_groups: bool = True) -> Tile:
    """The tile of a bucket; without dots of warp groups (before sm_90) at most 64 rows, more would spill."""
    return table[bucket if bucket in table and (bucket or warp_groups) else None if warp_groups else SOME]


def choices(
    default: Tile, kind: str, architecture: str | None, bucket: int | None, rows: int, blocks: int
) -> tuple[tuple[Tile, int], ...]:
    """Tiles and how often each splits K: the default alone, or first of at most 12 where tiles are tried.

    Candidates are known for two architectures (``candidates``); where K is split, each also with twice as many parts.
    """
    usual = (default, splits(default, bucket, rows, blocks))
    if not _tuned.get() or architecture is None:
        return (usual,)
    names = {FEW: "few", SOME: "some"}
    found = {usual: None}
    for sizes in TILES.get((architecture, kind, names.get(bucket or 0, "many")), ()):
        tile = Tile(*sizes)
        count = splits(tile, bucket, rows, blocks)
        found[tile, count] = None
        if bucket in names and count < _MAX_SPLITS and blocks >= 4 * count:
            found[tile, 2 * count] = None
    return tuple(found)[:12]


def splits(tile: Tile, bucket: int | None, rows: int, blocks: int) -> int:
    """How many programs share the K blocks of a tile of weights; one above ``SOME`` rows."""
    if bucket not in (FEW, SOME):
        return 1
    wanted, count = PROGRAMS * tile.bn // rows, 1
    while count < min(_MAX_SPLITS, wanted) and blocks >= 4 * count:
        count *= 2
    return count


def counters(rows: int) -> int:
    """Tiles of the buckets with split K, at most: those of 64 weight rows, with four of 16 input rows each."""
    return rows // 64 * (SOME // FEW)
