"""Linear equations over unknown log-scales, as they come, and their null space.

A label names the log-scale of one element: 0 is "must not change", +i is unknown i, -i its negative, and NEUTRAL is a
value no factor can change (an exact zero or an infinity). Ties between two labels go to a union-find with signs, all
of a tensor at once; the few equations with three labels, or with a coefficient of 2, wait for ``solve``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpass.sites.elimination import Array, collected, eliminate

NEUTRAL = -(2**62)


@dataclass(frozen=True)
class Solution:
    """The null space, by unknown: label = Σ over terms of ``power · log s[index]``.

    Args:
        size: its dimension, the length of s.
        index: [unknowns, terms] int64, -1 where there is no term.
        power: [unknowns, terms] float64.
    """

    size: int
    index: Array
    power: Array

    def resolve(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Index and power, [terms, *shape], of signed labels."""
        flat = labels.numpy()
        which = np.where(flat == NEUTRAL, 0, np.abs(flat))
        index, power = self.index[which], self.power[which] * np.sign(flat)[..., None]
        live = (index >= 0).reshape(-1, index.shape[-1]).any(0) if index.size else np.zeros(1, bool)
        terms = max(1, int(np.flatnonzero(live).max(initial=0)) + 1)
        return (torch.from_numpy(np.moveaxis(index[..., :terms], -1, 0).copy()),
                torch.from_numpy(np.moveaxis(power[..., :terms], -1, 0).copy()))


class System:
    """Unknowns and equations. Labels are int64 tensors of any shape; most are expanded, which costs nothing."""

    def __init__(self) -> None:
        self.count = 1
        self.parent: Array = np.zeros(1, np.int64)  # signed: unknown i equals sign(parent) times |parent|
        self.link: Array = np.zeros(1, np.int64)  # as parent, but never shortened: it remembers who met whom
        self.event: Array = np.full(1, -1, np.int64)
        self.reasons: list[tuple[str, Sequence[int]]] = []  # in words, and labels that explain it better
        self.rows: list[tuple[Array, Array, int, str]] = []  # labels [n, k], coefficients [k], pivot column, why
        self.unions = 0

    def fresh(self, *shape: int) -> Tensor:
        """New unknowns."""
        first, number = self.count, int(np.prod(shape))
        self.count += number
        if self.count > len(self.parent):
            room = max(self.count, 2 * len(self.parent))
            for name, fill in (("parent", 0), ("link", 0), ("event", -1)):
                old = getattr(self, name)
                new = np.full(room, fill, np.int64)
                new[: len(old)] = old
                setattr(self, name, new)
        span = np.arange(first, self.count)
        self.parent[span] = self.link[span] = span
        return torch.from_numpy(span).reshape(shape)

    def find(self, labels: Array) -> Array:
        """Each label's representative; 0 where it must not change."""
        sign, at = np.sign(labels), np.abs(labels)
        start = at
        while True:
            above = self.parent[at]
            sign, over = sign * np.where(above < 0, -1, 1), np.abs(above)
            if (over == at).all():
                break
            at = over
        self.parent[start] = np.where(at == 0, 0, at * sign * np.where(labels < 0, -1, 1))
        return np.asarray(at * sign)

    def value(self, labels: Tensor) -> Tensor:
        """Labels by their representatives, NEUTRAL kept; expanded dimensions stay expanded."""
        small = narrowed(labels)
        flat = small.reshape(-1).numpy()
        found = np.where(flat == NEUTRAL, NEUTRAL, self.find(np.where(flat == NEUTRAL, 0, flat)))
        return torch.from_numpy(found).reshape(small.shape).expand(labels.shape)

    def is_zero(self, labels: Tensor) -> bool:
        """Whether none of the labels may change, as far as is known."""
        found = self.value(labels)
        return bool(((found == 0) | (found == NEUTRAL)).all())

    def equal(self, one: Tensor, two: Tensor, why: str) -> None:
        """Tie two tensors of labels, broadcast against each other, element by element."""
        a, b = narrowed(*broadcast(one, two))
        self._union(a.reshape(-1).numpy(), b.reshape(-1).numpy(), why)

    def zero(self, labels: Tensor, why: str) -> None:
        """These must not change."""
        self.equal(labels, torch.zeros((), dtype=torch.int64), why)

    def _union(self, a: Array, b: Array, why: str, because: Sequence[int] = ()) -> None:
        keep = (a != NEUTRAL) & (b != NEUTRAL) & (a != b)
        a, b = a[keep], b[keep]
        self.reasons.append((why, because))
        while a.size:
            a, b = self.find(a), self.find(b)
            differ = a != b
            a, b = a[differ], b[differ]
            if not a.size:
                return
            opposite = a == -b  # x = -x: zero
            high = np.maximum(np.abs(a), np.abs(b))
            first_high = np.abs(a) == high
            low = np.where(opposite, 0, np.where(first_high, b * np.sign(a), a * np.sign(b)))
            self.parent[high] = self.link[high] = low  # of several writers one wins, the rest come around again
            self.event[high] = len(self.reasons) - 1
            self.unions += 1

    def combine(self, terms: Sequence[tuple[float, Tensor]], why: str, pivot: int = 0) -> Tensor:
        """The label Σ coefficient · label; a fresh unknown and an equation where no existing label is that sum.

        NEUTRAL in a factor makes the product NEUTRAL. ``pivot``: which of (result, *terms) the others should express.
        """
        labels = broadcast(*(self.value(label) for _, label in terms))
        shape = labels[0].shape
        small = [narrowed(labels[0])] if len(labels) == 1 else narrowed(*labels)
        stack = np.stack([label.reshape(-1).numpy() for label in small], 1)
        unique, back = np.unique(stack, axis=0, return_inverse=True)
        weights = np.array([coefficient for coefficient, _ in terms])
        result = self._sums(unique, weights, pivot, why)
        return torch.from_numpy(result[back.reshape(-1)]).reshape(small[0].shape).expand(shape)

    def _sums(self, labels: Array, weights: Array, pivot: int, why: str) -> Array:
        neutral = (labels == NEUTRAL).any(1)
        live = labels != 0
        single = live.sum(1) == 1
        column = live.argmax(1)
        rows = np.arange(len(labels))
        unit = single & (np.abs(weights[column]) == 1)
        result = np.where(unit, labels[rows, column] * weights[column].astype(np.int64), 0)
        if len(weights) == 2 and abs(weights[0]) == abs(weights[1]) == 1:  # x - x
            cancel = labels[:, 0] * int(weights[0]) == -labels[:, 1] * int(weights[1])
        else:
            cancel = np.zeros(len(labels), bool)
        rest = live.any(1) & ~unit & ~cancel & ~neutral
        result[cancel] = 0
        if rest.any():
            made = self.fresh(int(rest.sum())).numpy()
            result[rest] = made
            self.row(np.concatenate((made[:, None], labels[rest]), 1), np.array([-1.0, *weights]), why, pivot)
        result[neutral] = NEUTRAL
        return np.asarray(result)

    def row(self, labels: Array, weights: Array, why: str, pivot: int = 0) -> None:
        """Σ_k weights[k] · labels[:, k] = 0, one equation a line. labels: [n, k]; weights: [k]."""
        self.rows.append((np.where(labels == NEUTRAL, 0, labels), weights, pivot, why))

    def why(self, label: int, depth: int = 8) -> str:
        """Why a label must not change: the reason that tied its class to zero, as far back as there is one."""
        at, reason, because = abs(label), "", ()  # type: tuple[int, str, Sequence[int]]
        while at:
            event, at = int(self.event[at]), abs(int(self.link[at]))
            if event < 0:
                return reason
            reason, because = self.reasons[event]
        deeper = (self.why(other, depth - 1) for other in because if depth and abs(other) != abs(label))
        return next(filter(None, deeper), reason)

    def solve(self) -> Solution:
        """All exact re-scalings."""
        pivots = eliminate(self._reduce())
        roots = self.find(np.arange(self.count))
        free = np.unique(np.abs(roots))
        free = free[(free > 0) & ~np.isin(free, pivots.label)]
        number = np.full(self.count, -1, np.int64)
        number[free] = np.arange(len(free))
        index = np.full((self.count, max(1, pivots.other.shape[1])), -1, np.int64)
        power = np.zeros(index.shape)
        index[:, 0] = number[np.abs(roots)]
        power[:, 0] = np.where(index[:, 0] >= 0, np.sign(roots), 0)
        line = np.full(self.count, -1, np.int64)
        line[pivots.label] = np.arange(len(pivots.label))
        chosen = np.flatnonzero(line[np.abs(roots)] >= 0)
        which = line[np.abs(roots[chosen])]
        live = pivots.other[which] > 0
        index[chosen] = np.where(live, number[pivots.other[which]], -1)
        power[chosen] = np.where(live, pivots.weight[which] * np.sign(roots[chosen])[:, None], 0)
        return Solution(len(free), index, power)

    def _reduce(self) -> list[tuple[Array, Array, Array]]:
        """The equations over representatives; those with one label, or two of equal weight, become ties first."""
        while True:
            before = self.unions
            left = []
            for labels, weights, pivot, why in self.rows:
                found = self.find(labels.reshape(-1)).reshape(labels.shape)
                unknown, weight = collected(found, weights)
                count = (unknown > 0).sum(1)
                self._close(labels[count == 1], unknown[count == 1], why)
                self._tie(unknown[count == 2], weight[count == 2], why)
                left.append((unknown[count > 1], weight[count > 1], np.abs(found[count > 1, pivot])))
            if before == self.unions:
                return left

    def _close(self, labels: Array, unknown: Array, why: str) -> None:
        """Lines with one label left: it is zero, because the others of its line are."""
        if len(labels):
            because = [label for label in labels[0].tolist() if label and not self.find(np.array([label]))[0]]
            self._union(unknown.max(1), np.zeros(len(unknown), np.int64), why, because)

    def _tie(self, unknown: Array, weight: Array, why: str) -> None:
        """Lines with two labels of equal weight are ties."""
        order = np.argsort(unknown == 0, axis=1, kind="stable")[:, :2]
        pair, by = np.take_along_axis(unknown, order, 1), np.take_along_axis(weight, order, 1)
        equal = np.abs(by[:, 0]) == np.abs(by[:, 1])
        self._union(pair[equal, 0], -pair[equal, 1] * np.sign(by[equal, 0] * by[equal, 1]).astype(np.int64), why)


def broadcast(*labels: Tensor) -> Any:
    """``torch.broadcast_tensors``."""
    return torch.broadcast_tensors(*labels)  # type: ignore[no-untyped-call]


def narrowed(*labels: Tensor) -> Any:
    """The tensors with each dimension in which all of them only repeat cut to one element."""
    same = [all(label.stride(d) == 0 or label.shape[d] == 1 for label in labels) for d in range(labels[0].dim())]
    at = tuple(slice(0, 1) if repeats and labels[0].shape[d] else slice(None) for d, repeats in enumerate(same))
    cut = tuple(label[at] if label.dim() else label for label in labels)
    return cut if len(cut) > 1 else cut[0]
