"""The ranges of what the linears of one block read, channel by channel, before and after a recipe's methods.

Methods that re-scale (SmoothQuant, LET, FSBR) leave the function and change these ranges: outlier channels go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpass.debug.figure import BLUE, ORANGE, draw
from qpass.debug.layers import Reading, readings
from qpass.errors import InputError, UnsupportedError
from qpass.files import write_text
from qpass.formats import nearest
from qpass.graph.program import Program
from qpass.observe.run import observe

_COLUMNS, _CELL = 2, (4.2, 2.3)  # inches
_POINTS = 192


@dataclass(frozen=True)
class Ranges:
    """What was seen of one value: max |x| of each channel, [C] float32, before and after."""

    reading: Reading
    before: Tensor
    after: Tensor

    @property
    def outliers(self) -> tuple[float, float]:
        """The largest channel over the median one, before and after."""
        one, two = (float(part.max() / part.median().clamp(min=1e-30)) for part in (self.before, self.after))
        return one, two


def block_of(program: Program, block: str | None = None) -> str:
    """The name of a block that holds linears: ``block``, or the middle one; empty where the graph has none.

    Raises:
        UnsupportedError: there is no linear.
        InputError: no such block.
    """
    found = readings(program)
    if not found:
        raise UnsupportedError("the model has no linear", where="its graph", fix="pass a model with linears")
    blocks = list(dict.fromkeys(reading.block for reading in found if reading.block)) or [""]
    if block is not None and block not in blocks:
        raise InputError(f"there is no block {block!r}", where="--block",
                         fix=nearest(block, blocks) or f"use one of {', '.join(blocks[:4])}")  # fmt: skip
    return blocks[len(blocks) // 2] if block is None else block


def ranges(
    planned: Program, solved: Program, batches: Iterable[Any], block: str, *,
    progress: Callable[[int], None] | None = None,
) -> list[Ranges]:  # fmt: skip
    """The ranges of what the linears of one block read.

    Args:
        planned, solved: the same program before and after its methods, so that values have the same names.
        block: as ``block_of`` gives it.

    Raises:
        NumericsError: NaN or Inf in a value, with its name.
    """
    inside = [reading for reading in readings(planned) if reading.block == block]
    names = [reading.value for reading in inside]
    batches = list(batches)
    one, two = (observe(program, batches, names, progress=progress) for program in (planned, solved))
    found = []
    for reading in inside:
        before, after = one[reading.value].absmax, two[reading.value].absmax
        if before is not None and after is not None:  # an expert that no token went to has none
            found.append(Ranges(reading, before, after))
    return found


def save_ranges(found: Sequence[Ranges], folder: Path, title: str) -> None:
    """Write ``ranges.png`` and ``ranges.json``. Raises InputError without matplotlib, OutputError."""
    rows = -(-len(found) // _COLUMNS)
    size = (_CELL[0] * min(_COLUMNS, len(found)), _CELL[1] * rows + 0.6)
    draw(folder / "ranges.png", size, lambda figure: _paint(figure, found, title))
    data = [{"value": one.reading.value, "linears": list(one.reading.linears), "before": one.before.tolist(),
             "after": one.after.tolist(), "outlier_ratio": one.outliers} for one in found]  # fmt: skip
    write_text(folder / "ranges.json", json.dumps({"title": title, "inputs": data}, indent=1) + "\n")


def _paint(figure: Any, found: Sequence[Ranges], title: str) -> None:
    figure.suptitle(f"Ranges of what {found[0].reading.block or 'the model'} reads\n{title}", fontsize=9, x=0.01,
                    ha="left")  # fmt: skip
    columns = min(_COLUMNS, len(found))
    cells = figure.subplots(-(-len(found) // columns), columns, squeeze=False).flatten()
    for axes in cells[len(found) :]:
        axes.set_axis_off()
    for number, (axes, one) in enumerate(zip(cells, found)):
        _panel(axes, one)
        if number == 0:
            axes.legend(frameon=False, ncols=2, loc="upper right", borderaxespad=0.1, handlelength=1.2)


def _panel(axes: Any, one: Ranges) -> None:
    order = one.before.argsort(descending=True)
    channels = len(order)
    places = torch.linspace(0, channels - 1, min(channels, _POINTS)).round().long()
    before, after = one.before[order][places], one.after[order][places]
    axes.plot(places.tolist(), before.tolist(), color=ORANGE, linewidth=1.4, label="before")
    axes.plot(places.tolist(), after.tolist(), color=BLUE, linewidth=0.8, label="after")
    least = float(torch.cat([before, after]).clamp(min=1e-12).min())
    axes.set_yscale("log")
    axes.set_ylim(max(least, 1e-12) / 1.4, 2.6 * float(torch.cat([before, after]).max().clamp(min=1e-6)))
    axes.set_xlim(0, max(channels - 1, 1))
    axes.set_xlabel("channels, the largest before first", labelpad=1)
    axes.set_ylabel("max |x|")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.5)
    old, new = one.outliers
    axes.set_title(f"{one.reading.label}: largest over median {old:.3g} → {new:.3g}", fontsize=8, loc="left")
