"""Sparse elimination for the few kinds of equation that are no ties, most of them all at once.

Nearly every line has an unknown that no other line has: that one is its pivot, and there is nothing to substitute. Only
lines that are chained to one without such an unknown go through Gauss-Jordan one by one, in exact fractions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Pivots:
    """Unknown ``label[i]`` = Σ_k ``weight[i, k]`` · unknown ``other[i, k]``; 0 where there is no term."""

    label: Array
    other: Array
    weight: Array


def collected(labels: Array, weights: Array) -> tuple[Array, Array]:
    """Signed representatives and coefficients, [n, k] each, with like terms added up; 0 where nothing is left."""
    unknown, weight = np.abs(labels), weights * np.sign(labels)
    order = np.argsort(unknown, axis=1)
    unknown, weight = np.take_along_axis(unknown, order, 1), np.take_along_axis(weight, order, 1)
    for column in range(1, unknown.shape[1]):
        same = unknown[:, column] == unknown[:, column - 1]
        weight[:, column] += np.where(same, weight[:, column - 1], 0)
        weight[:, column - 1] = np.where(same, 0, weight[:, column - 1])
    live = (weight != 0) & (unknown != 0)
    return np.where(live, unknown, 0), np.where(live, weight, 0)


def eliminate(blocks: Iterable[tuple[Array, Array, Array]]) -> Pivots:
    """Solve lines Σ weight · unknown = 0. A block is (unknowns [n, k], weights [n, k], the pivot each asks for [n])."""
    unknown, weight, wanted = _stacked(blocks)
    if not len(unknown):
        return Pivots(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros((0, 1)))
    own = np.bincount(unknown.reshape(-1))[unknown] == 1
    own &= unknown != 0
    asks = own & (unknown == wanted[:, None])
    column = np.where(asks.any(1), asks.argmax(1), own.argmax(1))
    hard = ~own.any(1)
    tied = np.isin(unknown, unknown[hard]) & (unknown != 0)
    hard |= (tied & (np.arange(unknown.shape[1]) != column[:, None])).any(1)
    return _joined(_easy(unknown[~hard], weight[~hard], column[~hard]),
                   _exact(unknown[hard], weight[hard], wanted[hard]))  # fmt: skip


def _stacked(blocks: Iterable[tuple[Array, Array, Array]]) -> tuple[Array, Array, Array]:
    """All lines in one table, each once."""
    given = list(blocks)
    width = max([1, *(labels.shape[1] for labels, _, _ in given)])
    table = [np.concatenate((_wide(labels, width), _wide(weights, width), wanted[:, None]), 1)
             for labels, weights, wanted in given]  # fmt: skip
    lines = np.concatenate([np.zeros((0, 2 * width + 1)), *table])
    _, first = np.unique(lines[:, : 2 * width], axis=0, return_index=True)
    lines = lines[np.sort(first)]
    return lines[:, :width].astype(np.int64), lines[:, width : 2 * width], lines[:, -1].astype(np.int64)


def _wide(values: Array, width: int) -> Array:
    return np.pad(values.astype(np.float64), ((0, 0), (0, width - values.shape[1])))


def _easy(unknown: Array, weight: Array, column: Array) -> Pivots:
    rows = np.arange(len(unknown))
    pivot, scale = unknown[rows, column], -1 / weight[rows, column]
    rest = np.arange(unknown.shape[1]) != column[:, None]
    return Pivots(pivot, np.where(rest, unknown, 0), np.where(rest, weight * scale[:, None], 0))


def _exact(unknown: Array, weight: Array, wanted: Array) -> Pivots:
    """Gauss-Jordan: each line's pivot is taken out of all others."""
    lines = [{label: Fraction(value) for label, value in zip(*line) if label}
             for line in zip(unknown.tolist(), weight.tolist())]  # fmt: skip
    uses: dict[int, set[int]] = defaultdict(set)
    for number, terms in enumerate(lines):
        for label in terms:
            uses[label].add(number)
    pivots: dict[int, int] = {}
    for number, ask in enumerate(wanted.tolist()):
        terms = lines[number]
        if terms:
            pivot = ask if ask in terms else min(terms, key=lambda label: (len(uses[label]), -label))
            for other in [other for other in uses[pivot] if other != number]:
                _substitute(lines[other], terms, pivot, uses, other)
            pivots[pivot] = number
    width = max([1, *(len(lines[number]) for number in pivots.values())])
    label = np.array(list(pivots), np.int64)
    others, weights = np.zeros((len(label), width), np.int64), np.zeros((len(label), width))
    for row, (pivot, number) in enumerate(pivots.items()):
        terms = {name: -value / lines[number][pivot] for name, value in lines[number].items() if name != pivot}
        others[row, : len(terms)], weights[row, : len(terms)] = list(terms), [float(value) for value in terms.values()]
    return Pivots(label, others, weights)


def _substitute(
    line: dict[int, Fraction], terms: dict[int, Fraction], pivot: int, uses: dict[int, set[int]], number: int
) -> None:
    factor = -line[pivot] / terms[pivot]
    for label, weight in terms.items():
        total = line.get(label, Fraction(0)) + factor * weight
        if total:
            line[label] = total
            uses[label].add(number)
        else:
            line.pop(label, None)
            uses[label].discard(number)


def _joined(one: Pivots, two: Pivots) -> Pivots:
    """One table, terms in front and no column without one."""
    width = max(one.other.shape[1], two.other.shape[1])
    other = np.concatenate([_wide(part.other, width) for part in (one, two)]).astype(np.int64)
    weight = np.concatenate([_wide(part.weight, width) for part in (one, two)])
    order = np.argsort(other == 0, axis=1, kind="stable")[:, : max(1, (other > 0).sum(1).max(initial=0))]
    return Pivots(np.concatenate((one.label, two.label)), np.take_along_axis(other, order, 1),
                  np.take_along_axis(weight, order, 1))  # fmt: skip
