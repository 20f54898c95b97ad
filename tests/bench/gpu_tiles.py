"""Writes ``lowering/cuda/candidates.py``: the tiles that are tried on a GPU, pruned without one.

    python -m tests.bench.gpu_tiles          # compiles some 160 kernels: seven minutes on one core

Formulas give the sizes; each is compiled for sm_90 and sm_80 and dropped where it spills, needs more shared memory than
a processor has, or issues too many instructions for a weight and a row.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from qpass.errors import UnsupportedError
from qpass.lowering.cuda import candidates, tiles
from qpass.lowering.cuda.tiles import Tile
from qpass.lowering.triton.properties import properties
from tests.lowering.triton.built import built

FILE = Path(candidates.__file__)
SHARED = {"sm_90": 232448, "sm_80": 166912}
BUCKETS = {"few": tiles.FEW, "some": tiles.SOME, "many": None}
KINDS = {"w4a16": ("w4a16", 128), "w4a16-part": ("w4a16", 64), "w4a8_int8": ("w4a8_int8", 128),
         "w4a8_int8-part": ("w4a8_int8", 64), "w4a8_fp8": ("w4a8_fp8", 128), "int8": ("int8", 128),
         "fp8": ("fp8", 128), "fp8_block": ("fp8_block", 128), "integer_linear": ("integer_linear", 128)}  # fmt: skip
ON_SM_80 = ("w4a16", "w4a8_int8", "int8", "integer_linear")
EIGHT_BITS = ("int8", "fp8", "fp8_block", "integer_linear")
"""Twice the bytes of a weight: more of them have to be under way, and no ``many`` where the dot is Inductor's."""
MOST = {"few": 6, "some": 6, "many": 12}
"""Where K is split each tile is tried with two numbers of parts: 12 in all."""
FEW_LIMIT, SLACK = 3.9, 1.5
"""Instructions for a weight: what the memory allows where it is the limit; else, times the least of the list."""


def buckets(kind: str) -> list[str]:
    """Those in which the kernel runs."""
    return [bucket for bucket in BUCKETS if bucket != "many" or kind not in ("int8", "fp8", "integer_linear")]


def sizes(kind: str, bucket: str) -> Iterator[Tile]:
    """By formula: a warp has 16 weight rows at least, an accumulator of 64 registers or fewer in a thread."""
    rows = {"few": (16,), "some": (64, 32), "many": (128, 64)}[bucket]
    stages = {"few": (4, 3), "some": (3,), "many": (3,)}[bucket]
    if kind in EIGHT_BITS:
        stages = {"few": (6, 5), "some": (5,), "many": (4, 3)}[bucket]
    for bm, bn, warps, depth in itertools.product(rows, (128, 64), (4, 8), stages):
        if bn >= 16 * warps and bm * bn <= 64 * 32 * warps:
            yield Tile(bm, bn, warps, depth)


def cost(kind: str, bucket: str, target: str, tile: Tile) -> float | None:
    """Instructions for a weight and an input row; None where it cannot be."""
    name, group = KINDS[kind]
    try:
        kernel, weights = built(name, BUCKETS[bucket], target, group=group, tile=tile)
    except UnsupportedError:
        return None
    found = properties(kernel)
    if kernel.stack > 0 or found.spills or kernel.shared > SHARED[target] or found.words[0] != found.words[1]:
        return None
    return found.per_weight(weights, kernel) / tile.bm


def pruned(kind: str, bucket: str, target: str) -> list[Tile]:
    """The best first."""
    costs = {tile: cost(kind, bucket, target, tile) for tile in sizes(kind, bucket)}
    kept = {tile: value for tile, value in costs.items() if value is not None}
    limit = FEW_LIMIT / tiles.FEW if bucket == "few" else SLACK * min(kept.values())
    return sorted((tile for tile, value in kept.items() if value <= limit), key=lambda tile: kept[tile])[: MOST[bucket]]


def main() -> None:
    found: dict[tuple[str, str, str], list[Tile]] = {}
    for target, kind in itertools.product(SHARED, KINDS):
        if target == "sm_80" and kind not in ON_SM_80:
            continue
        for bucket in buckets(kind):
            found[target, kind, bucket] = pruned(kind, bucket, target)
            print(target, kind, bucket, len(found[target, kind, bucket]), file=sys.stderr, flush=True)
            FILE.write_text(text(found))


def text(found: dict[tuple[str, str, str], list[Tile]]) -> str:
    """The file with these lists."""
    head, _, _ = FILE.read_text().partition("TILES:")
    lines = ["TILES: dict[tuple[str, str, str], tuple[tuple[int, int, int, int], ...]] = {"]
    for (target, kind, bucket), several in found.items():
        lines.append(f'    ("{target}", "{kind}", "{bucket}"): (')
        lines += [f"        ({tile.bm}, {tile.bn}, {tile.warps}, {tile.stages})," for tile in several]
        lines.append("    ),")
    return "\n".join([head + lines[0], *lines[1:], "}"]) + "\n"


if __name__ == "__main__":
    main()
