"""The distribution of a value in one pass over any number of batches: histogram, moments, channels.

    kurtosis    n Σ (x - μ)⁴ / (Σ (x - μ)²)²            3 for a normal distribution
    outliers    max_c absmax_c / median_c absmax_c       1 where all channels are equally large

Moments of two sets of numbers are merged by the formulas of Chan, Golub and LeVeque (1979) and of Pébay (2008), in
float64. The histogram has 4096 bins on [-R, R), R a power of two; where a batch has larger numbers, R doubles and bins
join in pairs, so it counts exactly and its memory never grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.observe.statistics import Stats

BINS = 4096


@dataclass
class Distribution(Stats):
    """What was seen of one value: ``Stats``, and how its numbers are spread. Empty until the first ``update``.

    Attributes:
        counts: [4096] int64, numbers in each bin of [-limit, limit).
        limit: R; 0 before the first number that is not 0.
        numbers: elements seen.
        mean: of all.
        powers: Σ (x - μ)^k for k = 2, 3, 4.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64), repr=False)
    limit: float = 0.0
    numbers: int = 0
    mean: float = 0.0
    powers: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def update(self, value: Tensor) -> None:
        """Take in one batch. value: [..., C], any float dtype. Errors as in ``Stats.update``."""
        super().update(value)
        if not value.numel():
            return
        flat = value.detach().flatten()
        self._count(flat)
        mean = float(flat.mean(dtype=torch.float64))
        centered = flat.double() - mean
        self._join(flat.numel(), mean, *(float((centered**power).sum()) for power in (2, 3, 4)))

    def _count(self, flat: Tensor) -> None:
        """Add to the histogram. The division by a power of two is exact, so every number is in its own bin."""
        largest = float(flat.abs().amax())
        if largest >= self.limit and largest > 0:
            self._widen(2.0 ** math.frexp(largest)[1])
        step = (self.limit or 1.0) / (BINS / 2)
        places = (torch.floor(flat.double() / step) + BINS // 2).to(torch.int64)
        self.counts += torch.bincount(places.cpu(), minlength=BINS)

    def _widen(self, limit: float) -> None:
        if self.limit == 0:  # zeros only so far, and these have the bin that begins at 0
            self.limit = limit
        while self.limit < limit:
            self.counts = F.pad(self.counts.view(-1, 2).sum(1), (BINS // 4, BINS // 4))
            self.limit *= 2

    def _join(self, count: int, mean: float, two: float, three: float, four: float) -> None:
        """Merge the moments of ``count`` more numbers."""
        n, total, gap = self.numbers, self.numbers + count, mean - self.mean
        a, b = n / total, count / total
        m2, m3, m4 = self.powers
        self.powers = (
            m2 + two + gap**2 * n * b,
            m3 + three + gap**3 * n * b * (a - b) + 3 * gap * (a * two - b * m2),
            m4 + four + gap**4 * n * b * (a * a - a * b + b * b) + 6 * gap**2 * (a * a * two + b * b * m2)
            + 4 * gap * (a * three - b * m3),
        )  # fmt: skip
        self.mean += gap * b
        self.numbers = total

    @property
    def std(self) -> float:
        """Standard deviation, of all numbers seen."""
        return math.sqrt(self.powers[0] / self.numbers)

    @property
    def kurtosis(self) -> float | None:
        """Fourth standardized moment; None where all numbers are equal."""
        return self.numbers * self.powers[2] / self.powers[0] ** 2 if self.powers[0] > 0 else None

    @property
    def outliers(self) -> float | None:
        """The largest channel's absmax over the median channel's; None where half of the channels are always 0."""
        assert self.absmax is not None
        middle = float(self.absmax.median())
        return float(self.absmax.max()) / middle if middle else None

    def histogram(self, most: int = 96) -> tuple[list[float], list[int]]:
        """Edges (one more than bins) and counts of at most ``most`` equal bins from the least to the greatest number.

        The first edge is at or below the least number, the last one above the greatest.
        """
        assert self.low is not None and self.high is not None
        step = (self.limit or 1.0) / (BINS / 2)
        first, last = (math.floor(float(end) / step) for end in (self.low.min(), self.high.max()))
        width = -(-(last - first + 1) // most)
        bins = -(-(last - first + 1) // width)
        found = self.counts[first + BINS // 2 : last + 1 + BINS // 2]
        grouped = F.pad(found, (0, bins * width - len(found))).view(bins, width).sum(1)
        return [(first + width * number) * step for number in range(bins + 1)], grouped.tolist()
