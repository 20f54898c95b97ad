"""Streamed second moments are those of all rows at once."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import InputError, NumericsError
from qpass.observe.moments import SecondMoment, StreamMoments

ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[40], [1, 39], [7, 0, 13, 20]])
def test_batches_of_any_size(sizes):
    moment = SecondMoment(dtype=torch.float64)
    for part in ROWS.split(sizes):
        moment.update(part.reshape(1, -1, 6))
    assert moment.count == 40
    torch.testing.assert_close(moment.matrix, 2 / 40 * ROWS.T @ ROWS)


def test_half_precision_is_widened_before_it_is_summed():
    moment = SecondMoment()
    moment.update(ROWS.bfloat16())
    wide = ROWS.bfloat16().double()
    torch.testing.assert_close(moment.matrix.double(), 2 / 40 * wide.T @ wide, rtol=1e-5, atol=1e-6)


def test_merged():
    one, two = SecondMoment(dtype=torch.float64), SecondMoment(dtype=torch.float64)
    one.merge(two)
    assert one.matrix is None
    one.update(ROWS[:13])
    two.update(ROWS[13:])
    before = two.matrix.clone()
    one.merge(two)
    assert one.count == 40 and torch.equal(two.matrix, before)
    torch.testing.assert_close(one.matrix, 2 / 40 * ROWS.T @ ROWS)
    empty = SecondMoment(dtype=torch.float64)
    empty.merge(two)
    empty.update(ROWS[:13])
    assert torch.equal(two.matrix, before)
    torch.testing.assert_close(empty.matrix, one.matrix)


def test_two_streams():
    moments = StreamMoments(torch.float64, asymmetric=True)
    for rows, other in zip(ROWS.split(9), OTHER.split(9)):
        moments.update(rows, other)
    found, moved = moments.inputs(), OTHER - ROWS
    for got, want in zip(found, (ROWS.T @ ROWS, moved.T @ ROWS, moved.T @ moved)):
        torch.testing.assert_close(got, 2 / 40 * want)
    plain = StreamMoments(torch.float64, asymmetric=False)
    plain.update(ROWS, None)
    assert plain.inputs().cross is None and plain.count == 40


def test_mistakes():
    moment = SecondMoment()
    moment.update(torch.ones(2, 6))
    with pytest.raises(InputError, match="5 channels, there were 6 before"):
        moment.update(torch.ones(2, 5))
    bad = torch.ones(2, 6)
    bad[1, 4] = float("inf")
    with pytest.raises(NumericsError, match="NaN or Inf in 1 channels, the first is 4"):
        moment.update(bad)
    moments = StreamMoments(torch.float32, asymmetric=True)
    with pytest.raises(NumericsError, match="the first is 4"):
        moments.update(torch.ones(2, 6), bad)
    with pytest.raises(InputError, match="the calibration batches have no row"):
        StreamMoments(torch.float32, asymmetric=False).inputs()
