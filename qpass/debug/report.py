"""What one compilation did, as files: report.md, report.json, report.html, and every stage with its diff.

    report.md       to read in an editor or a pull request
    report.html     the same in a browser, with the stage diffs to fold open; one file, no script, nothing fetched
    report.json     the same as data
    plan.txt        the table that ``qpass.plan`` prints
    stages/         NN-STAGE.txt, the program after each stage; NN-STAGE.diff, what the stage changed
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import qpass
from qpass.debug.report_html import to_html
from qpass.files import write_text
from qpass.graph.dump import dump_stages
from qpass.passes.plan import Choice, Plan, fold_rows
from qpass.pipeline import Trace
from qpass.recipe import Recipe

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Plain data.

    Attributes:
        title: the model, as the user named it.
        recipe: ``Recipe.as_dict()``.
        linears: one row a linear: name, shape, format, kernel, reason, bytes before and after.
        kept: other large weights that stay in float, and why.
        log: what the passes noted: by, where, what.
        seconds: step -> wall seconds.
        measured: rows with the same keys, for example a model's perplexity and speed, before and after.
        notes: sentences for the reader, such as conclusions or a generated text.
    """

    title: str
    recipe: Mapping[str, Any]
    target: str
    versions: Mapping[str, str]
    bytes_before: int
    bytes_after: int
    linears: tuple[Row, ...]
    kept: tuple[Row, ...]
    log: tuple[Row, ...]
    seconds: Mapping[str, float]
    measured: tuple[Row, ...]
    notes: tuple[str, ...]


def write_report(
    trace: Trace, folder: Path, *, title: str, recipe: Recipe, measured: Sequence[Row] = (), notes: Sequence[str] = (),
    done: Callable[[str], None] | None = None,
) -> Report:  # fmt: skip
    """Write the files that the module's docstring lists into ``folder``.

    Args:
        trace: of a compilation that has reached PLANNED at least.
        folder: made if it does not exist.
        title: what the model is called.
        recipe: what the trace was made with.
        measured, notes: see ``Report``.
        done: called with each stage written.

    Raises:
        OutputError: a file cannot be written.
    """
    assert trace.plan is not None
    report = collect(trace, trace.plan, title=title, recipe=recipe, measured=measured, notes=notes)
    dump_stages(trace.stages, folder / "stages", done)
    write_text(folder / "plan.txt", f"{trace.plan}\n")
    write_text(folder / "report.json", json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", to_markdown(report, trace.plan))
    write_text(folder / "report.html", to_html(report, _stages(folder / "stages", trace), tables(report)))
    return report


def collect(
    trace: Trace, plan: Plan, *, title: str, recipe: Recipe, measured: Sequence[Row], notes: Sequence[str]
) -> Report:
    """The report of a trace, as data."""
    last = list(trace.stages.values())[-1]
    return Report(
        title=title,
        recipe=recipe.as_dict(),
        target=plan.target,
        versions={"qpass": qpass.__version__, "torch": str(torch.__version__)},
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        linears=tuple(_linear(name, choice) for name, choice in plan.choices),
        kept=tuple({"name": name, "reason": reason} for name, reason in plan.unseen),
        log=tuple(asdict(change) for change in last.log),
        seconds={step: round(seconds, 3) for step, seconds in trace.seconds.items()},
        measured=tuple(measured),
        notes=tuple(notes),
    )


def _linear(name: str, choice: Choice) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(choice.sizes),
        "format": str(choice.scheme) if choice.scheme else None,
        "kernel": choice.kernel.name if choice.kernel else None,
        "reason": choice.reason or None,
        "notes": list(choice.notes),
        "bytes_before": choice.bytes_before,
        "bytes_after": choice.bytes_after,
    }


@dataclass(frozen=True)
class Table:
    """A heading, the columns and the rows; ``empty`` is what to say when there is no row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str


def tables(report: Report) -> list[Table]:
    """What both the Markdown and the HTML show, repeated layers folded."""
    quantized = [_cells(row, "name", "shape", "format", "kernel") for row in report.linears if row["format"]]
    kept = [_cells(row, "name", "shape", "reason") for row in report.linears if not row["format"]]
    kept += [(row["name"], "", row["reason"]) for row in report.kept]
    log = [(row["where"], row["by"], _starred(row["where"], row["what"])) for row in report.log]
    raised = [row for row in log if row[1].startswith("raise/")]
    fused = [row for row in log if row[1].startswith("fuse/")]
    others = [row for row in log if row not in raised and row not in fused]
    steps = ("value", "rule", "what")
    head = tuple(report.measured[0]) if report.measured else ()
    measured = tuple(tuple(number(row[key]) for key in head) for row in report.measured)
    return [
        Table("Measured", head, measured, "nothing was measured in this run"),
        Table("Quantized", ("linear", "shape", "format", "kernel"), _folded(quantized), "no linear"),
        Table("Kept in float", ("weight", "shape", "why"), _folded(kept), "nothing"),
        Table("Recognized", steps, _folded(raised), "no pattern matched"),
        Table("Fused, or not and why", steps, _folded(fused), "nothing to fuse"),
        *([Table("Other notes of the passes", steps, _folded(others), "nothing")] if others else []),
    ]


def to_markdown(report: Report, plan: Plan) -> str:
    """The report as text. The tables of the plan are in ``plan``."""
    count = sum(row["format"] is not None for row in report.linears)
    ratio = report.bytes_before / max(report.bytes_after, 1)
    lines = [
        f"# {_escaped(report.title)}: {_escaped(plan.recipe)} on {plan.target}",
        "",
        f"{count} of {len(report.linears)} linears quantized. "
        f"Weights {mib(report.bytes_before)} -> {mib(report.bytes_after)}, {ratio:.2f} times smaller.",
        "",
        *(f"- {_escaped(note)}" for note in report.notes),
    ]
    for table in tables(report):
        lines += ["", f"## {table.title}", "", *_markdown_table(table)]
    steps = tuple((step, f"{seconds:.2f}") for step, seconds in report.seconds.items())
    lines += ["", "## Seconds by step", "", *_markdown_table(Table("", ("step", "seconds"), steps, "none"))]
    lines += ["", "Folder `stages` has every stage and what it changed; report.html shows them in a browser.", ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    if not table.rows:
        return [f"{table.empty.capitalize()}."]
    rows = [table.head, ("---",) * len(table.head), *([_escaped(cell) for cell in row] for row in table.rows)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _escaped(text: str) -> str:
    return " ".join(re.sub(r"([\\`*_|<\[\]])", r"\\\1", str(text)).split())


def mib(count: int) -> str:
    """``20.89 MiB``."""
    return f"{count / 2**20:.2f} MiB"


def number(value: Any) -> str:
    """A float with as many digits as matter: 38.83, 210, 0.0312."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _cells(row: Row, *keys: str) -> tuple[str, ...]:
    return tuple("x".join(map(str, row[key])) if key == "shape" else str(row[key]) for key in keys)


_LAYER = re.compile(r"\.(\d+)\.")


def _starred(where: str, what: str) -> str:
    """``what`` with the layer's number of ``where`` as ``N``, so that equal notes of several layers fold."""
    match = _LAYER.search(where)
    return what.replace(match[0], ".N.") if match else what


def _folded(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Rows that differ in the layer's number only are one; rows that do not differ at all are counted."""
    counts = Counter(rows)
    unique = [(name, *rest[:-1], rest[-1] + (f" ({counts[name, *rest]} times)" if counts[name, *rest] > 1 else ""))
              for name, *rest in dict.fromkeys(rows)]  # fmt: skip
    return tuple(tuple(row) for row in fold_rows(unique))


def _stages(folder: Path, trace: Trace) -> list[tuple[str, str, str]]:
    """Stage, its text and its diff, as written."""
    found = []
    for number_, stage in enumerate(trace.stages):
        stem = folder / f"{number_:02}-{stage}"
        diff = stem.with_suffix(".diff")
        found.append((stage, stem.with_suffix(".txt").read_text("utf-8"), diff.read_text("utf-8") if number_ else ""))
    return found
