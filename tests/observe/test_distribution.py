"""A distribution in one pass against all numbers at once, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qpass.errors import InputError, NumericsError
from qpass.observe.distribution import BINS, Distribution


def batches() -> list[Tensor]:
    """Zeros, small and large numbers, one shifted, one of one row: the range of the histogram grows four times."""
    small = 0.001 * torch.randn(3, 5, 8)
    return [torch.zeros(2, 8), small, torch.randn(7, 8) + 3, 50 * torch.randn(1, 8) ** 3, torch.randn(4, 8)]


def seen(parts: list[Tensor]) -> Distribution:
    made = Distribution()
    for part in parts:
        made.update(part)
    return made


def test_moments_are_those_of_all_numbers() -> None:
    parts = batches()
    x = torch.cat([part.flatten() for part in parts]).double()
    found, centered = seen(parts), x - x.mean()
    assert found.numbers == x.numel() and found.mean == pytest.approx(float(x.mean()), rel=1e-12)
    for power, value in zip((2, 3, 4), found.powers):
        assert value == pytest.approx(float((centered**power).sum()), rel=1e-11)
    assert found.std == pytest.approx(float(x.std(correction=0)), rel=1e-12)
    assert found.kurtosis == pytest.approx(float((centered**4).mean() / (centered**2).mean() ** 2), rel=1e-11)


@pytest.mark.parametrize("most", [1, 7, 96, BINS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_histogram_counts_exactly(most: int, dtype: torch.dtype) -> None:
    parts = [part.to(dtype) for part in batches()]
    x = torch.cat([part.flatten() for part in parts]).double()
    edges, counts = seen(parts).histogram(most)
    assert len(counts) <= most and len(edges) == len(counts) + 1
    assert edges[0] <= float(x.min()) and edges[-1] > float(x.max())
    want = [int(((x >= low) & (x < high)).sum()) for low, high in pairwise(edges)]
    assert counts == want and sum(counts) == x.numel()


def test_channels_and_their_outlier() -> None:
    x = torch.ones(10, 5)
    x[3, 2] = -40.0
    found = seen([x])
    assert found.absmax is not None and found.absmax.tolist() == [1, 1, 40, 1, 1] and found.outliers == 40


def test_a_power_of_two_is_inside() -> None:
    edges, counts = seen([torch.tensor([[1.0, -1.0, 2.0, -4.0]])]).histogram(4)
    assert sum(counts) == 4 and edges[0] <= -4 and edges[-1] > 2


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_numbers_have_no_kurtosis(value: float) -> None:
    found = seen([torch.full((4, 3), value)])
    assert found.kurtosis is None and found.std == 0
    assert found.outliers == (None if value == 0 else 1)
    assert sum(found.histogram()[1]) == 12


def test_bad_input() -> None:
    with pytest.raises(NumericsError, match="NaN or Inf in 1 channels, the first is 1"):
        Distribution().update(torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(InputError, match="5 channels, there were 8 before"):
        seen([torch.zeros(2, 8), torch.zeros(2, 5)])
    empty = seen([torch.zeros(0, 8)])
    assert empty.numbers == 0 and empty.absmax is None
