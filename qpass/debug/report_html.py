"""A report as one HTML file: no script, nothing fetched, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

_CSS = """
:root { color-scheme: light; --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --card: #fff; --accent: #2f6f9f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: #f7f8fa; color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.sub { color: var(--soft); margin: 0 0 1.5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.card { flex: 1 1 10rem; background: var(--card); padding: .8rem 1rem; border: 1px solid var(--line);
        border-radius: 8px; }
.card b { display: block; font-size: 1.35rem; font-weight: 600; }
.card span { color: var(--soft); font-size: .85rem; }
ul { padding-left: 1.2rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .42rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; background: #fbfcfd; white-space: nowrap; }
td:first-child { font-weight: 500; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7rem; background: var(--accent); border-radius: 2px; min-width: 1px; }
.track { width: 60%; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; }
details details { margin: .6rem .9rem; }
summary { cursor: pointer; padding: .55rem .9rem; font-weight: 600; }
summary small { color: var(--soft); font-weight: 400; margin-left: .6rem; }
pre { margin: 0; padding: .8rem .9rem; overflow-x: auto; border-top: 1px solid var(--line);
      font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.add { background: #e9f7ee; color: #14532d; } .del { background: #fdecec; color: #7f1d1d; }
.hunk { color: var(--accent); }
.wrap { white-space: pre-wrap; color: var(--soft); }
.add, .del { display: inline-block; min-width: 100%; }
"""


def to_html(report: Any, stages: Sequence[tuple[str, str, str]], tables: Sequence[Any]) -> str:
    """The page.

    Args:
        report: a ``report.Report``.
        stages: name, program text, diff text of each stage.
        tables: ``report.tables(report)``.
    """
    name = f"{report.title}: {report.recipe['name']} on {report.target}"
    versions = ", ".join(f"{package} {version}" for package, version in report.versions.items())
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(name)}</title><style>{_CSS}</style></head><body>",
        f'<h1>{escape(name)}</h1><p class="sub">{escape(versions)}</p>',
        _cards(report),
    ]
    if report.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    parts += [_table(table) for table in tables]
    parts += [_seconds(report.seconds), _stages(stages), "</body></html>\n"]
    return "\n".join(parts)


def _cards(report: Any) -> str:
    count = sum(row["format"] is not None for row in report.linears)
    before, after = (size / 2**20 for size in (report.bytes_before, report.bytes_after))
    cards = [
        (f"{before:.2f} → {after:.2f} MiB", "weights before and after"),
        (f"{report.bytes_before / max(report.bytes_after, 1):.2f}×", "smaller"),
        (f"{count} of {len(report.linears)}", "linears quantized"),
        (f"{sum(report.seconds.values()):.1f} s", "to compile"),
    ]
    body = "".join(f'<div class="card"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in cards)
    return f'<div class="cards">{body}</div>'


def _table(table: Any) -> str:
    title = f"<h2>{escape(table.title)}</h2>"
    if not table.rows:
        return f"{title}<p>{escape(table.empty.capitalize())}.</p>"
    numeric = [all(_is_number(row[column]) for row in table.rows) for column in range(len(table.head))]
    css = [' class="num"' if flag else "" for flag in numeric]
    head = "".join(f"<th{kind}>{escape(cell)}</th>" for cell, kind in zip(table.head, css))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, css)) + "</tr>"
        for row in table.rows
    )
    return f'{title}<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").removesuffix(" MiB").isdigit()


def _seconds(seconds: Any) -> str:
    most = max([*seconds.values(), 1e-9])
    rows = "".join(
        f'<tr><td>{escape(step)}</td><td class="num">{value:.2f}</td>'
        f'<td class="track"><span class="bar" style="width:{100 * value / most:.1f}%"></span></td></tr>'
        for step, value in seconds.items()
    )
    head = '<tr><th>step</th><th class="num">seconds</th><th></th></tr>'
    return f'<h2>Seconds by step</h2><div class="scroll"><table>{head}{rows}</table></div>'


def _stages(stages: Sequence[tuple[str, str, str]]) -> str:
    parts = ["<h2>Stages</h2><p>Each opens to what it changed; below that is the whole program.</p>"]
    for stage, text, diff in stages:
        lines = text.count("\n")
        whole = f"<details><summary>Program at {escape(stage)}<small>{lines} lines</small></summary>"
        whole += f"<pre>{escape(text)}</pre></details>"
        parts.append(f"<details><summary>{escape(stage)}<small>{escape(_headline(diff))}</small></summary>")
        parts.append((_change(diff) if diff else "") + whole + "</details>")
    return "\n".join(parts)


def _headline(diff: str) -> str:
    """The first line of a diff's summary, ``ops 212 -> 118``."""
    return diff.split("\n", 1)[0] if diff else "as torch.export gives it"


def _change(diff: str) -> str:
    """The summary of a diff, then its lines."""
    summary, mark, lines = diff.partition("\n--- ")
    body = f"<pre>{_colored(f'--- {lines}')}</pre>" if mark else ""
    return f'<pre class="wrap">{escape(summary.rstrip())}</pre>{body}'


def _colored(diff: str) -> str:
    kinds = {"+": "add", "-": "del", "@": "hunk"}
    lines = []
    for line in diff.splitlines():
        kind = "hunk" if line.startswith(("--- ", "+++ ")) else kinds.get(line[:1])
        lines.append(f'<span class="{kind}">{escape(line)}</span>' if kind else escape(line))
    return "\n".join(lines)
