"""Figures without a display: matplotlib's Agg canvas, one style, colors that color-blind readers can tell apart."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qpass.errors import InputError
from qpass.files import write_bytes

# Okabe and Ito (2008)
BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
GRAY = "#8A8A8A"
DPI = 150
_STYLE = {
    "font.size": 8.5, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "font.family": "DejaVu Sans", "axes.axisbelow": True,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def check_matplotlib() -> None:
    """Raise InputError where matplotlib is not installed. Called before long work."""
    _module("matplotlib.figure")


def draw(path: Path, size: tuple[float, float], paint: Callable[[Any], None]) -> None:
    """Write a PNG.

    Args:
        path: of the file.
        size: width and height in inches.
        paint: called with an empty ``matplotlib.figure.Figure``.

    Raises:
        InputError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figures, canvases = _module("matplotlib.figure"), _module("matplotlib.backends.backend_agg")
    with _module("matplotlib").rc_context(_STYLE):
        figure = figures.Figure(figsize=size, dpi=DPI, layout="constrained")
        canvases.FigureCanvasAgg(figure)
        paint(figure)
        picture = io.BytesIO()
        # No version or date in the file: equal figures are equal bytes.
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_bytes(path, picture.getvalue())


def _module(name: str) -> Any:
    """Only plots need matplotlib, so it is an extra and imported when one is drawn."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"plots need matplotlib, which cannot be imported: {error}",
                         fix='pip install "qpass[plots]", or pip install matplotlib') from error  # fmt: skip
