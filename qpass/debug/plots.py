"""What the linears of a model read, as a figure: the distributions of Wu et al. 2023, ZeroQuant-FP, for any model.

Of the first, middle and last block, one panel for each value that linears read: a histogram with a logarithmic count,
and below it the largest magnitude of each channel. The same numbers go into a JSON file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qpass.capture.normalise import normalise
from qpass.debug.figure import BLACK, BLUE, ORANGE, draw
from qpass.debug.layers import Reading, readings, some_blocks
from qpass.errors import UnsupportedError
from qpass.files import write_text
from qpass.graph.program import Program
from qpass.observe.distribution import Distribution
from qpass.observe.run import gather
from qpass.passes.raise_ops import raise_ops

MOST = 24
"""Panels of a block: a block of many experts has more, and the figure and the file then say how many are left out."""
_COLUMNS, _POINTS = 6, 128
_CELL, _ROW, _HEAD = 2.45, 2.75, 0.85  # inches


@dataclass(frozen=True)
class Activations:
    """What was seen.

    Attributes:
        title: the model, as the user named it.
        tokens: rows of each value at most; a value may have fewer where only some tokens are used.
        panels: each value with its distribution, in graph order.
        left_out: block -> values that ``MOST`` left out.
    """

    title: str
    tokens: int
    panels: tuple[tuple[Reading, Distribution], ...]
    left_out: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The figures shown, as plain data."""
        return {"model": self.title, "tokens": self.tokens, "left_out": self.left_out,
                "inputs": [_figures(reading, seen) for reading, seen in self.panels]}  # fmt: skip


def activations(
    captured: Program, batches: Iterable[Tensor], title: str, *, progress: Callable[[int], None] | None = None
) -> Activations:
    """The distribution of what the linears of the first, middle and last block read.

    Args:
        captured: CAPTURED.
        batches: token ids [B, T], or what else ``gather`` takes.
        progress: called with the number of batches done.

    Raises:
        UnsupportedError: the graph has no linear.
        NumericsError: NaN or Inf in a value, with its name.
    """
    program = raise_ops(normalise(captured))
    found = readings(program)
    if not found:
        raise UnsupportedError("the model has no linear", where=title, fix="pass a model with linears")
    chosen, left_out = [], {}
    for block in some_blocks(found):
        inside = [reading for reading in found if reading.block == block]
        chosen += inside[:MOST]
        if len(inside) > MOST:
            left_out[block] = len(inside) - MOST
    seen = gather(program, batches, {one.value: Distribution() for one in chosen}, progress=progress)
    most = max(one.count for one in seen.values())
    return Activations(title, most, tuple((one, seen[one.value]) for one in chosen), left_out)


def save_activations(seen: Activations, folder: Path) -> None:
    """Write ``activations.png`` and ``activations.json``. Raises InputError without matplotlib, OutputError."""
    blocks = list(dict.fromkeys(reading.block for reading, _ in seen.panels))
    groups = [[panel for panel in seen.panels if panel[0].block == block] for block in blocks]
    columns = min(_COLUMNS, max(map(len, groups)))
    rows = [-(-len(group) // columns) for group in groups]
    size = (max(_CELL * columns, 6.0), _ROW * sum(rows) + 0.25 * len(rows) + _HEAD)

    def paint(figure: Any) -> None:
        figure.suptitle(_heading(seen), fontsize=9, x=0.01, ha="left")
        parts = figure.subfigures(len(groups), 1, height_ratios=rows, squeeze=False)[:, 0]
        for part, block, group, height in zip(parts, blocks, groups, rows):
            part.suptitle(block or "the whole model", fontsize=9, fontweight="bold", x=0.01, ha="left")
            cells = part.subfigures(height, columns, squeeze=False).flatten()
            for cell, panel in zip(cells, group):
                _panel(cell, *panel)

    draw(folder / "activations.png", size, paint)
    write_text(folder / "activations.json", json.dumps(seen.as_dict(), indent=1) + "\n")


def _heading(seen: Activations) -> str:
    lines = [f"What the linears of {seen.title} read: first, middle and last block, {seen.tokens:,} tokens"]
    lines += ["blue: histogram of all values; kurtosis 3 is that of a normal distribution",
              "orange: largest |x| of each channel; outliers: the largest channel over the median one (dashed)"]
    lines += [f"{count} more inputs of {block or 'the model'} are left out" for block, count in seen.left_out.items()]
    return "\n".join(lines)


def _panel(cell: Any, reading: Reading, seen: Distribution) -> None:
    assert seen.low is not None and seen.high is not None and seen.absmax is not None
    top, bottom = cell.subplots(2, 1, height_ratios=(1.5, 1))
    edges, counts = seen.histogram()
    top.stairs(counts, edges, fill=True, color=BLUE)
    top.set_yscale("log")
    top.set_ylim(0.6, 3 * max(counts))
    top.set_xlabel("value", labelpad=1)
    top.set_ylabel("count")
    shape = f"kurtosis {_short(seen.kurtosis)}, outliers {_short(seen.outliers)}×"
    ends = f"min {_short(float(seen.low.min()))}, max {_short(float(seen.high.max()))}"
    top.set_title(f"{_wrapped(reading.label)}\n{ends}\n{shape}", fontsize=7.5)
    heights, each = _pooled(seen.absmax.tolist())
    edges = [*(each * place for place in range(len(heights))), len(seen.absmax)]
    bottom.stairs(heights, edges, fill=True, color=ORANGE)
    bottom.axhline(float(seen.absmax.median()), color=BLACK, linewidth=0.9, linestyle="--")
    bottom.set_xlim(0, len(seen.absmax))
    bottom.set_ylim(0, 1.08 * max(heights) or 1)
    bottom.set_xlabel("channel" if each == 1 else f"channel (largest of each {each})", labelpad=1)
    bottom.set_ylabel("max |x|")


def _pooled(absmax: Sequence[float]) -> tuple[list[float], int]:
    """Bars that are at least two pixels wide, so that no outlier is lost: the largest of every ``each`` channels."""
    each = -(-len(absmax) // _POINTS)
    return [max(absmax[start : start + each]) for start in range(0, len(absmax), each)], each


def _wrapped(label: str, most: int = 30) -> str:
    """A long label, cut in two at a dot or a comma."""
    if len(label) <= most:
        return label
    place = max(label.rfind(mark, 0, most) for mark in ".,{")
    return f"{label[: place + 1]}\n{label[place + 1 :]}" if place > 0 else label


def _short(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}".replace("-", "−")


def _figures(reading: Reading, seen: Distribution) -> dict[str, Any]:
    assert seen.low is not None and seen.high is not None and seen.absmax is not None
    edges, counts = seen.histogram()
    return {
        "value": reading.value, "linears": list(reading.linears), "block": reading.block, "channels": reading.channels,
        "numbers": seen.numbers, "min": float(seen.low.min()), "max": float(seen.high.max()), "mean": seen.mean,
        "std": seen.std, "kurtosis": _finite(seen.kurtosis), "outlier_ratio": _finite(seen.outliers),
        "histogram": {"edges": edges, "counts": counts}, "channel_absmax": seen.absmax.tolist(),
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
