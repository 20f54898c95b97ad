"""What learning made of each block, as a figure: its loss as round to nearest and as it was kept.

The numbers are those of a run's checkpoints: Σ |y - t|² / Σ |t|² over the calibration batches, of the block's output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpass.debug.figure import BLUE, GRAY, ORANGE, draw
from qpass.errors import InputError
from qpass.files import write_text
from qpass.learn.checkpoint import Record, records

_WIDEST = 14.0  # inches


def learned(folder: Path) -> list[Record]:
    """The blocks that a run has finished. Raises InputError where there is none, OutputError for a broken file."""
    found = records(folder)
    if not found:
        raise InputError("there is no finished block of a run", where=str(folder),
                         fix="pass the folder that --checkpoints or learning.folder named")  # fmt: skip
    return found


def save_blocks(found: Sequence[Record], folder: Path, title: str) -> None:
    """Write ``blocks.png`` and ``blocks.json``. Raises InputError without matplotlib, OutputError."""
    rows = [{"block": one.block, "kept": one.kept, "losses": one.losses, "halved": one.halved, "why": one.why}
            for one in found]  # fmt: skip
    size = (min(max(5.6, 1.8 + 0.42 * len(found)), _WIDEST), 3.4)
    draw(folder / "blocks.png", size, lambda figure: _paint(figure, found, title))
    write_text(folder / "blocks.json", json.dumps({"run": title, "blocks": rows}, indent=1) + "\n")


def _paint(figure: Any, found: Sequence[Record], title: str) -> None:
    kept = sum(one.kept for one in found)
    figure.suptitle(f"Loss of each block's output: {title}\n{kept} of {len(found)} blocks kept what they learned",
                    fontsize=9, x=0.01, ha="left")  # fmt: skip
    axes = figure.subplots()
    places = range(len(found))
    before = [_number(one, "rtn") for one in found]
    after = [_number(one, "best") if one.kept else math.nan for one in found]
    for place, low, high in zip(places, after, before):
        axes.plot([place, place], [low, high], color=GRAY, linewidth=0.9, zorder=1)
    axes.plot(places, before, "o", color=ORANGE, markersize=5, label="round to nearest")
    axes.plot(places, after, "s", color=BLUE, markersize=5, label="learned")
    rolled = [place for place, one in zip(places, found) if not one.kept]
    if rolled:
        axes.plot(rolled, [before[place] for place in rolled], "o", color=ORANGE, markersize=9, markerfacecolor="none",
                  label="rolled back")  # fmt: skip
    finite = [value for value in (*before, *after) if value > 0]
    if finite:  # of a block without anything to learn there is no loss
        axes.set_yscale("log")
        axes.set_ylim(min(finite) / 1.5, max(finite) * 1.5)
    axes.set_xlim(-0.6, len(found) - 0.4)
    names = [one.block.rpartition(".")[2] if one.block.rpartition(".")[2].isdigit() else one.block for one in found]
    step = -(-len(found) // 32)
    axes.set_xticks(list(places)[::step], names[::step])
    axes.set_xlabel(f"block ({found[0].block}, ...)")
    axes.set_ylabel("loss, Σ|y − t|² / Σ|t|²")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.5)
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _number(one: Record, name: str) -> float:
    return one.losses.get(name, math.nan)
