"""Lines of text -> the same lines with repeated layers printed once, found in the text itself.

A layer folds into the one before when both read the same after three things are made relative: the layer's own number,
the number of the layer it follows, and the numbers of values outside of any module, which may advance by a constant.
Nothing is lost: the fold line says what advances, and holds a fingerprint of the parameters it stands for.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_INDEX = re.compile(r"(?<![\w.])((?:[A-Za-z_]\w*\.)+?)(\d+)(?=[./@\s,)\]]|$)")
_MARK = re.compile(r" #([0-9a-f]{4}|meta)\b")
_NUMBERED = re.compile(r"%([A-Za-z_]+?_?)(\d+)\b(?![./@])")


@dataclass
class _Run:
    """Consecutive lines of one layer: ``model.layers.``, 3, the lines. No index outside of layers."""

    prefix: str
    index: int | None
    lines: list[str]


def fold_layers(lines: list[str]) -> list[str]:
    """Replace repeats by a line such as ``... model.layers.2-31 as model.layers.1, %kv_2 by 2 #1f3c``."""
    runs = _runs(lines)
    folded: list[str] = []
    position = 0
    while position < len(runs):
        last = _last_repeat(runs, position)
        folded += runs[position].lines
        if last > position:
            folded.append(_fold_line(runs[position : last + 1]))
        position = last + 1
    return folded


def _runs(lines: list[str]) -> list[_Run]:
    runs: list[_Run] = []
    for line in lines:
        match = _INDEX.search(line.split(" = ")[0]) if line.startswith(("%", "param ")) else None
        prefix, index = (match[1], int(match[2])) if match else ("", None)
        if not runs or (runs[-1].prefix, runs[-1].index) != (prefix, index):
            runs.append(_Run(prefix, index, []))
        runs[-1].lines.append(line)
    return runs


def _last_repeat(runs: list[_Run], first: int) -> int:
    """The position of the last run that repeats ``first``. Layer 0 is no model for others: its input differs."""
    last, steps = first, None
    while runs[first].index and last + 1 < len(runs):
        found = _steps(runs[last], runs[last + 1])
        if found is None or (steps is not None and found != steps):
            break
        last, steps = last + 1, found
    return last


def _steps(one: _Run, two: _Run) -> list[int] | None:
    """How far each outside number advances from one layer to the next; None if the layers differ otherwise."""
    if one.prefix != two.prefix or one.index is None or two.index != one.index + 1:
        return None
    text, other = _relative(one), _relative(two)
    if _NUMBERED.sub(r"%\1#", text) != _NUMBERED.sub(r"%\1#", other):
        return None
    return [int(b[1]) - int(a[1]) for a, b in zip(_NUMBERED.findall(text), _NUMBERED.findall(other))]


def _relative(run: _Run) -> str:
    def relative(match: re.Match[str]) -> str:
        offset = int(match[2]) - (run.index or 0)
        return f"{match[1]}*{offset or ''}" if match[1] == run.prefix and offset in (0, -1) else match[0]

    return _INDEX.sub(relative, _MARK.sub("", "\n".join(run.lines)))


def _fold_line(runs: list[_Run]) -> str:
    base, first, last = runs[0], runs[1].index, runs[-1].index
    span = f"{first}" if first == last else f"{first}-{last}"
    steps = zip(_NUMBERED.findall(_relative(base)), _steps(base, runs[1]) or [])
    moving = dict.fromkeys(f"%{name}{number} by {step}" for (name, number), step in steps if step)
    marks = [mark for run in runs[1:] for line in run.lines for mark in _MARK.findall(line)]
    digest = f" #{hashlib.blake2b(' '.join(marks).encode(), digest_size=2).hexdigest()}" if marks else ""
    return ", ".join([f"... {base.prefix}{span} as {base.prefix}{base.index}", *moving]) + digest
