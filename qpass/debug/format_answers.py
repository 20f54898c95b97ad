"""The questions of ZeroQuant-FP (Wu et al. 2023), answered from rows that differ in one thing only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qpass.debug.compare_formats import Comparison, Row
from qpass.formats import Format

Part = Callable[[Row, Format], Any]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: for readers.
        part: what the rows differ in.
        first, others: its value in the one row and in those it is compared with.
        rest: what must be equal in both.
        ask: recipes that would answer it, where no rows do.
    """

    text: str
    part: Part
    first: Any
    others: tuple[Any, ...]
    rest: tuple[Part, ...]
    ask: str


def _input(row: Row, weight: Format) -> str:
    return row.input.split(":")[0]


def _element(row: Row, weight: Format) -> str:
    return weight.element


def _scale(row: Row, weight: Format) -> str:
    return weight.scale


def _groups(row: Row, weight: Format) -> tuple[Any, ...]:
    return weight.granularity, weight.group, weight.rows, weight.symmetric


def _branch(row: Row, weight: Format) -> bool:
    return weight.rank > 0 or "lorc" in row.methods


def _gptq(row: Row, weight: Format) -> bool:
    return "gptq" in row.methods


def _others(row: Row, weight: Format) -> tuple[str, ...]:
    return tuple(name for name in row.methods if name not in ("lorc", "gptq"))


QUESTIONS = (
    Question("INT8 or FP8 activations?", _input, "int8", ("e4m3",),
             (_element, _scale, _groups, _branch, _gptq, _others), "w8a8-int8 w8a8-int-fp"),
    Question("INT4 or FP4 weights?", _element, "int4", ("e2m1",),
             (_input, _scale, _groups, _branch, _gptq, _others), "w4a8-int-fp w4a8-fp"),
    Question("E2M1 or E3M0?", _element, "e2m1", ("e3m0",),
             (_input, _scale, _groups, _branch, _gptq, _others), "w4a8-fp w4a8-fp-e3m0"),
    Question("What do scales cost that are powers of two apart?", _scale, "f16", ("m1", "m2", "m2plus"),
             (_element, _input, _groups, _branch, _gptq, _others), "w4a8-fp w4a8-fp-m1 w4a8-fp-m2"),
    Question("What does GPTQ win back?", _gptq, False, (True,),
             (_element, _input, _scale, _groups, _branch, _others), "w4a8-fp gptq+w4a8-fp"),
    Question("What does LoRC win back?", _branch, False, (True,),
             (_element, _input, _scale, _groups, _gptq, _others), "w4a8-fp lorc+w4a8-fp"),
)  # fmt: skip


def answers(found: Comparison) -> list[tuple[str, list[str]]]:
    """Each question with one line for each pair of rows that answers it, or what to compare where there is none."""
    rows = [row for row in found.rows[1:] if row.change is not None and row.weight]
    return [(one.text, list(_pairs(one, rows, found)) or [f"not measured; compare {one.ask}"]) for one in QUESTIONS]


def _pairs(question: Question, rows: Sequence[Row], found: Comparison) -> Iterator[str]:
    formats = {id(row): Format.parse(row.weight) for row in rows}

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(part(row, formats[id(row)]) for part in question.rest)

    for one in rows:
        if question.part(one, formats[id(one)]) != question.first:
            continue
        for two in rows:
            if question.part(two, formats[id(two)]) in question.others and key(one) == key(two):
                yield _line(one, two)


def _line(one: Row, two: Row) -> str:
    assert one.change is not None and two.change is not None
    gap = two.change - one.change
    better = "equal" if gap == 0 else f"{(two if gap < 0 else one).name} is better by {abs(gap):.3g}"
    return f"{one.name} {_signed(one.change)}, {two.name} {_signed(two.change)}: {better}"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
