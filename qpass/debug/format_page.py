"""A comparison of formats as text, as a page, as data, and as a bar chart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qpass.debug.compare_formats import COSINE, FLOAT, Comparison, Row
from qpass.debug.figure import BLUE, GRAY, GREEN, ORANGE, PURPLE, draw
from qpass.debug.format_answers import answers
from qpass.files import write_text

_NOTE = (
    "Difference: perplexity above the float model's, or 1 - cosine similarity; 0 is as good as float. Bits, relative "
    "error and SQNR are those of the linears that have codes, scales and low-rank branches included. Seconds: to "
    "choose codes and build, not speed."
)


def columns(found: Comparison) -> list[str]:
    """The head of the table."""
    return ["scheme", found.metric, "difference", "bits/weight", "weights, MiB", "relative error", "SQNR, dB",
            "seconds"]  # fmt: skip


def cells(row: Row, metric: str) -> list[str]:
    """One line of it; a scheme that cannot run has its reason instead of numbers."""
    if row.reason:
        return [row.name, f"cannot run: {row.reason}", *[""] * 6]
    digits = 5 if metric == COSINE else 3
    change = "" if row.name == FLOAT else _number(row.change, "+.2e" if metric == COSINE else "+.3f")
    size = None if row.weight_bytes is None else row.weight_bytes / 2**20
    return [row.name, _number(row.value, f",.{digits}f"), change, _number(row.bits, ".2f"), _number(size, ",.2f"),
            _number(row.relative_error, ".4f"), _number(row.sqnr_db, ".1f"), _number(row.seconds, ".1f")]  # fmt: skip


def text(found: Comparison) -> str:
    """For a terminal: the table, numbers to the right, then the answers."""
    lines = [columns(found), *(cells(row, found.metric) for row in found.rows)]
    whole = [line for line in lines if not line[1].startswith("cannot run")]
    widths = [max(len(line[0]) for line in lines), *(max(map(len, column)) for column in list(zip(*whole))[1:])]
    shown = []
    for line in lines:
        rest = line[1:2] if line[1].startswith("cannot run") else [
            cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]  # fmt: skip
        shown.append("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())
    shown += ["", *(f"{name}: left out, it is {other} here" for name, other in found.skipped.items())]
    for question, given in answers(found):
        shown += [question, *(f"  {answer}" for answer in given)]
    return "\n".join(shown)


def markdown(found: Comparison, notes: Sequence[str] = ()) -> str:
    """The page."""
    lines = [f"# Formats on {found.title}", "", f"{found.tokens:,} tokens, in pieces of {found.window}. {_NOTE}", ""]
    lines += [*notes, ""] if notes else []
    lines += [*table(found), "", "![difference to float](compare-formats.png)", ""]
    lines += [*(f"- `{name}` is left out: it is `{other}` here." for name, other in found.skipped.items())]
    for question, given in answers(found):
        lines += ["", f"**{question}**", "", *(f"- {answer}" for answer in given)]
    return "\n".join(lines) + "\n"


def table(found: Comparison) -> list[str]:
    """The lines of a table in markdown."""
    head = columns(found)
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in found.rows:
        name, *rest = (cell.replace("|", "\\|") for cell in cells(row, found.metric))
        lines.append(f"| {' | '.join([f'`{name}`' if name != FLOAT else name, *rest])} |")
    return lines


def save(found: Comparison, folder: Path, about: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Write ``compare-formats.md``, ``.json`` and ``.png``. Raises InputError without matplotlib, OutputError.

    Args:
        about: what else belongs into the data: text, calibration, versions.
    """
    chart(found, folder / "compare-formats.png")
    data = {**about, **found.as_dict(), "answers": {question: given for question, given in answers(found)}}
    write_text(folder / "compare-formats.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_text(folder / "compare-formats.md", markdown(found, notes))


_KINDS = {"INT8 activations": BLUE, "FP8 activations": ORANGE, "4-bit activations": GREEN, "other activations": PURPLE,
          "float activations": GRAY}  # fmt: skip


def kind(row: Row) -> str:
    """What the bar of a row is colored by."""
    if not row.input:
        return "float activations"
    element = row.input.split(":")[0]
    if element.startswith("e") and element[1:].replace("m", "").isdigit():
        return "4-bit activations" if element in ("e2m1", "e3m0") else "FP8 activations"
    return {"int8": "INT8 activations", "int4": "4-bit activations"}.get(element, "other activations")


def chart(found: Comparison, path: Path) -> None:
    """Write the bar chart: one bar a recipe, its length the difference to float."""
    rows = [row for row in found.rows if row.name != FLOAT]
    values = [row.change for row in rows if row.change is not None and math.isfinite(row.change)]
    largest = max([*map(abs, values), 1e-12])
    scaled = found.metric != COSINE and largest > 20 * sorted(map(abs, values))[len(values) // 2] if values else False

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            _bar(axes, place, row, largest, found.metric)
        axes.axvline(0, color="#222222", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [_label(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        if scaled:
            axes.set_xscale("symlog", linthresh=max(sorted(map(abs, values))[len(values) // 2], 1e-3))
        low = min([0.0, *values])
        if not scaled:
            axes.set_xlim(low * 1.3 if low < 0 else 0, 1.22 * largest if max([0.0, *values]) > 0 else 0.1 * largest)
        base = found.rows[0].value
        name = "1 − cosine similarity to the float model's outputs" if found.metric == COSINE else (
            f"perplexity above the float model's ({base:.2f})")  # fmt: skip
        axes.set_xlabel(f"{name}; less is better")
        axes.set_title(f"{found.title}: what each scheme costs, {found.tokens:,} tokens", loc="left", fontsize=10)
        shown = [label for label in _KINDS if any(kind(row) == label and not row.reason for row in rows)]
        handles = [axes.barh([0], [0], color=_KINDS[label], label=label) for label in shown]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)

    draw(path, (8.0, 1.5 + 0.3 * len(rows)), paint)


def _bar(axes: Any, place: int, row: Row, largest: float, metric: str) -> None:
    if row.change is None or not math.isfinite(row.change):
        why = "cannot run" if row.reason else "infinite"
        axes.text(0.01 * largest, place, why, va="center", fontsize=7.5, color="#555555", style="italic")
        return
    axes.barh([place], [row.change], height=0.7, color=_KINDS[kind(row)])
    shown = f"{row.change:.1e}" if metric == COSINE else f"{row.change:+.3f}".replace("-", "−")
    bits = f"  ({row.bits:.2f} bits)" if row.bits is not None else ""
    axes.annotate(f"{shown}{bits}", (max(row.change, 0.0), place), xytext=(3, 0), textcoords="offset points",
                  va="center", fontsize=7.5)  # fmt: skip


def _label(name: str, most: int = 34) -> str:
    return name if len(name) <= most else "\nx ".join(name.split(" x ", 1)) if " x " in name else f"{name[: most - 1]}…"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) if math.isfinite(value) else "inf"
