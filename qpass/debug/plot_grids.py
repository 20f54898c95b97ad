"""What formats do to one vector with an outlier, as a figure: Wu et al. 2023, ZeroQuant-FP, Figure 2.

INT8 with a zero point spends its 256 points evenly between the least and the greatest value, so an outlier takes them
away from all others. Floats have most of theirs near 0, and lose in return on the outlier.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpass.debug.figure import BLACK, BLUE, GRAY, GREEN, ORANGE, draw
from qpass.files import write_text
from qpass.formats import Format
from qpass.graph.lockstep import sqnr_db
from qpass.numerics import codec

FORMATS = {"INT8, with zero point": "int8:token:asym", "FP8 E4M3": "e4m3:token:sym", "FP8 E5M2": "e5m2:token:sym"}
COLORS, MARKERS = (BLUE, ORANGE, GREEN), ("o", "s", "^")
COUNT, OUTLIER = 64, 80.0


@dataclass(frozen=True)
class Rounded:
    """The vector in one format.

    Attributes:
        label: for readers.
        format: the text of the format.
        scale, zero: what it was encoded with.
        points: [P] float32, every value that the format can stand for with them, increasing.
        values: [N] float32, the vector after encode and decode.
        errors: [N] float64, |x - value|.
        sqnr: of all values, dB; ``body`` of all but the outlier.
    """

    label: str
    format: str
    scale: float
    zero: int
    points: Tensor
    values: Tensor
    errors: Tensor
    sqnr: float
    body: float


def vector() -> Tensor:
    """[65] float32: 64 quantiles of a standard normal distribution, none of them 0, and one outlier at the end."""
    ranks = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
    return torch.cat([torch.special.ndtri(ranks), torch.tensor([OUTLIER])]).float()


def rounded(x: Tensor, label: str, text: str) -> Rounded:
    """One vector [N] in one input format with a scale per row."""
    fmt = Format.parse(text)
    codes, scale, zero = codec.quantize_rows(x[None], fmt)
    values = codec.dequantize_rows(codes, scale, zero, fmt, torch.float32)[0]
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(fmt.code_dtype)
    points = codec.dequantize_rows(every[None], scale, zero, fmt, torch.float32)[0]
    points = points[torch.isfinite(points)].unique()
    body = x.abs() < x.abs().max()
    return Rounded(label, text, float(scale), int(zero), points, values, (x.double() - values.double()).abs(),
                   sqnr_db(x, values), sqnr_db(x[body], values[body]))  # fmt: skip


def save_grids(folder: Path) -> list[Rounded]:
    """Write ``grids.png`` and ``grids.json``. Raises InputError without matplotlib, OutputError."""
    x = vector()
    found = [rounded(x, label, text) for label, text in FORMATS.items()]
    draw(folder / "grids.png", (9.0, 8.2), lambda figure: _paint(figure, x, found))
    data = {"vector": x.tolist(), "formats": [_data(one) for one in found]}
    write_text(folder / "grids.json", json.dumps(data, indent=1) + "\n")
    return found


def _data(one: Rounded) -> dict[str, Any]:
    return {"label": one.label, "format": one.format, "scale": one.scale, "zero": one.zero,
            "points": one.points.tolist(), "values": one.values.tolist(), "errors": one.errors.tolist(),
            "sqnr_db": one.sqnr if math.isfinite(one.sqnr) else None,
            "sqnr_db_without_outlier": one.body if math.isfinite(one.body) else None}  # fmt: skip


def _paint(figure: Any, x: Tensor, found: list[Rounded]) -> None:
    figure.suptitle(f"One vector of {len(x)} values, one of them an outlier, in three 8-bit formats", fontsize=11)
    whole, near, errors = figure.subplots(3, 1, height_ratios=(1, 1.15, 1.5))
    _lines(whole, x, found, (-6.0, 1.06 * OUTLIER))
    whole.set_xlabel("value")
    whole.set_title("a   everything that each format can stand for (gray ticks), and where the values go (marks)",
                    loc="left")  # fmt: skip
    _lines(near, x, found, (-2.75, 2.75))
    near.set_title("b   the same near 0, without the outlier: lines join each value with the point it is rounded to",
                   loc="left")  # fmt: skip
    near.set_xlabel("value")
    _errors(errors, x, found)
    errors.set_title("c   error of each value; errors below 0.0001 are drawn at the lower edge", loc="left")


def _lines(axes: Any, x: Tensor, found: list[Rounded], ends: tuple[float, float]) -> None:
    """The vector on top, and below it each format's points and the rounded values."""
    low, high = ends
    inside = (x >= low) & (x <= high)
    axes.plot(x[inside].tolist(), [0.0] * int(inside.sum()), "|", color=BLACK, markersize=9, markeredgewidth=0.9)
    for row, (one, color, marker) in enumerate(zip(found, COLORS, MARKERS), 1):
        points = one.points[(one.points >= low) & (one.points <= high)].tolist()
        axes.vlines(points, -row - 0.3, -row + 0.02, color=GRAY, linewidth=0.5)
        kept = inside & (one.values >= low) & (one.values <= high)
        if high < OUTLIER:
            for start, end in zip(x[kept].tolist(), one.values[kept].tolist()):
                axes.plot([start, end], [-row + 0.62, -row + 0.14], color=color, linewidth=0.5, alpha=0.7)
        axes.plot(one.values[kept].tolist(), [-row + 0.14] * int(kept.sum()), marker, color=color, markersize=3.5)
    axes.set_yticks([0, *(-row for row in range(1, len(found) + 1))], ["float", *(one.label for one in found)])
    axes.set_ylim(-len(found) - 0.5, 0.5)
    axes.set_xlim(*ends)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines["left"].set_visible(False)


def _errors(axes: Any, x: Tensor, found: list[Rounded]) -> None:
    floor = 1e-4
    for one, color, marker in zip(found, COLORS, MARKERS):
        label = f"{one.label}\nSQNR {one.sqnr:.1f} dB; without the outlier {one.body:.1f} dB"
        axes.plot(x.abs().tolist(), one.errors.clamp(min=floor).tolist(), marker, color=color, markersize=4,
                  label=label, markerfacecolor="none", markeredgewidth=0.9, clip_on=False)  # fmt: skip
        half = float((one.points[1:] - one.points[:-1]).max()) / 2
        if one.zero:
            axes.axhline(half, color=color, linewidth=0.8, linestyle=":")
            axes.text(9.0, half * 1.12, "half a step of INT8", color=color, fontsize=7.5, ha="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(floor, 0.5)
    axes.set_xlabel("|value|")
    axes.set_ylabel("|value − rounded value|")
    axes.legend(loc="lower center", bbox_to_anchor=(0.74, 0.08), edgecolor="#E4E4E4", labelspacing=0.8)
    axes.grid(color="#E4E4E4", linewidth=0.5)
