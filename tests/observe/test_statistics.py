"""Statistics of a stream are those of all of it at once, and the mean of middles follows its recurrence."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import InputError, NumericsError
from qpass.observe.statistics import Stats


def test_a_stream_is_its_whole():
    whole = torch.randn(12, 5, 7)
    stats = Stats()
    for part in whole.split([1, 4, 7]):
        stats.update(part)
    assert torch.equal(stats.absmax, whole.abs().amax((0, 1)))
    assert torch.equal(stats.low, whole.amin((0, 1))) and torch.equal(stats.high, whole.amax((0, 1)))
    assert (stats.count, stats.batches) == (60, 3)


def test_g12_the_mean_of_middles():
    stats = Stats()
    for middle in (0.5, 1.5, -1.0):
        stats.update(torch.tensor([[middle - 2.0], [middle + 2.0], [middle]]))
    assert stats.middle.item() == pytest.approx(0.4949, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_gives_float32(dtype):
    stats = Stats()
    stats.update(torch.ones(3, dtype=dtype))
    assert stats.absmax.dtype is torch.float32 and stats.count == 1


def test_mistakes():
    stats = Stats()
    stats.update(torch.ones(2, 3))
    with pytest.raises(InputError, match="4 channels, there were 3 before"):
        stats.update(torch.ones(2, 4))
    with pytest.raises(NumericsError, match="NaN or Inf in 1 channels, the first is 2"):
        stats.update(torch.tensor([1.0, 2.0, float("nan")]))
    stats.update(torch.ones(0, 3))
    assert stats.count == 2
