"""Codes of rows: the bound, the scale, the zero point, and extreme rows."""

from __future__ import annotations

import pytest
import torch

from qpass.numerics.integer.quantize import code_offset, largest_code, quantize_rows
from tests.numerics.integer.helpers import hard_rows, real, rows_of


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("mantissa", [8, 15])
def test_every_value_is_within_its_step(bits: int, symmetric: bool, mantissa: int) -> None:
    """|decoded - x| <= s (0.5 + D 2^-16 + D 2^-15): rounding, the 15-bit operand, the 15-bit reciprocal.

    With a zero point both roundings, of zero and of x, carry the last two; and each is of a range up to D.
    """
    values = torch.cat([hard_rows(2000, 128), torch.rand(20, 128, dtype=torch.float64) + 7, -torch.rand(20, 128) - 7])
    x, k = rows_of(values)
    codes, zero, m, ky = quantize_rows(x, k, bits, symmetric, mantissa)
    most, offset = largest_code(bits, symmetric), code_offset(bits, symmetric)
    assert codes.dtype == torch.int8 and int(m.min()) >= 1 << (mantissa - 1) and int(m.max()) < 1 << mantissa
    whole = codes.int() + offset
    assert int(whole.min()) >= (-most if symmetric else 0) and int(whole.max()) <= most
    scale = m.double() * torch.exp2(-ky.double())
    extent = values.abs().amax(-1) if symmetric else values.clamp(min=0).amax(-1) - values.clamp(max=0).amin(-1)
    used = extent > 0
    ratio = scale.flatten()[used] * most / extent[used]
    # the scale is never too small, so nothing is clipped, and at most three roundings up too large
    assert float(ratio.min()) >= 1 - 2.0**-27 and float(ratio.max()) <= 1 + 2.0 ** (1 - mantissa) + 2.0**-12
    error = ((codes - zero).double() * scale - real(x, k)).abs() / scale
    slack = most * (2.0**-16 + 2.0**-15) * (1 if symmetric else 2)
    assert float(error[used].max()) <= 0.5 + slack
    assert bool((codes[~used] == zero[~used]).all())


def test_against_exact_rational_rounding() -> None:
    """Codes of more than 10^6 values: at most one off from rounding x / s exactly, and that in few of them."""
    x, k = rows_of(hard_rows(4000, 300))
    codes, _, m, ky = quantize_rows(x, k)
    exact = torch.floor(x.double() * torch.exp2((ky - k).double()) / m.double() + 0.5)
    off = (codes.double() - exact).abs()
    assert float(off.max()) <= 1 and float((off > 0).double().mean()) <= 0.005


def test_extremes_of_the_row_format() -> None:
    top = 1 << 30
    x = torch.tensor([[top, -top, 0, 1], [1, 0, 0, 0], [-1, 1, 0, 0], [top, 0, 0, 0]], dtype=torch.int32)
    k = torch.tensor([[5], [0], [127], [-20]], dtype=torch.int32)
    codes, _, _, _ = quantize_rows(x, k)
    assert codes[0].tolist() == [127, -127, 0, 0] and codes[1].tolist() == [127, 0, 0, 0]
    codes, zero, m, ky = quantize_rows(x, k, 8, False)
    got = (codes - zero).double() * m * torch.exp2(-ky.double())
    want = real(x, k)
    assert float(((got - want).abs() / want.abs().amax(-1, keepdim=True)).max()) <= 0.51 * 2 / 255 + 1e-3


def test_zero_is_exact_with_a_zero_point() -> None:
    x, k = rows_of(torch.tensor([[0.0, 3.0, -1.0, 0.5], [0.0, 5.0, 6.0, 7.0], [0.0, -5.0, -6.0, -7.0]]))
    codes, zero, _, _ = quantize_rows(x, k, 8, False)
    assert bool((codes[:, 0] == zero[:, 0]).all())
