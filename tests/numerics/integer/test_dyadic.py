"""Real scales as m / 2^k."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import NumericsError
from qpass.numerics.integer.dyadic import fit, fit_one, row_of, vector


@pytest.mark.parametrize("bits", [8, 15, 16])
def test_error_is_at_most_half_a_unit_of_the_mantissa(bits: int) -> None:
    scale = torch.exp2(torch.rand(1_000_000, dtype=torch.float64) * 60 - 40)
    scale[:6] = torch.tensor([1.0, 0.5, 2.0, 1 - 2.0**-40, 2.0**-40, 2.0**40], dtype=torch.float64)
    m, k = fit(scale, bits)
    assert int(m.min()) >= 1 << (bits - 1) and int(m.max()) < 1 << bits
    # half a unit of a mantissa that is at least 2^(bits-1)
    assert float((m.double() * torch.exp2(-k.double()) / scale - 1).abs().max()) <= 2.0**-bits


def test_signs_zeros_and_what_is_no_number() -> None:
    assert fit_one(0.0) == (0, 0) and fit_one(-1.0) == (-16384, 14)
    with pytest.raises(NumericsError, match="NaN or Inf in a scale"):
        fit(torch.tensor([1.0, float("nan")]))


def test_channels_far_apart_keep_their_precision() -> None:
    scale = torch.tensor([1.0, 1e-3, 1e-6, -0.3, 0.0], dtype=torch.float64)
    m, shift, exponent = vector(scale)
    assert m.dtype == shift.dtype == exponent.dtype == torch.int32 and int(shift.min()) == 0
    got = m.double() * torch.exp2(-(exponent + shift).double())
    assert float(((got - scale).abs() - scale.abs() * 2.0**-15).max()) <= 0
    assert [int(part.abs().max()) for part in vector(torch.zeros(3))] == [0, 0, 0]


def test_a_constant_row() -> None:
    x, k = row_of(torch.tensor([0.3, -0.001, 0.0]))
    assert 2**28 <= int(x.abs().max()) <= 2**29
    assert torch.allclose(x.double() * 2.0 ** -int(k), torch.tensor([0.3, -0.001, 0.0]).double(), rtol=0, atol=2.0**-30)
    assert [int(part.abs().max()) for part in row_of(torch.zeros(2))] == [0, 0]
