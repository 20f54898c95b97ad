"""int8 products are exact, and the linear is that of the decoded operands."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import UnsupportedError
from qpass.numerics.integer.dyadic import row_of, vector
from qpass.numerics.integer.linear import linear, matmul, room
from qpass.numerics.integer.quantize import quantize_rows
from tests.numerics.integer.helpers import hard_rows, real, rows_of


@pytest.mark.parametrize("shape", [(1, 16, 8), (1, 1, 1), (5, 703, 33), (17, 4096, 64), (3, 16384, 40), (33, 256, 704)])
def test_int8_matmul_is_exact_also_at_the_ends(shape: tuple[int, int, int]) -> None:
    rows, width, out = shape
    low = torch.full((rows, width), -128, dtype=torch.int8), torch.full((out, width), -128, dtype=torch.int8)
    mixed = low[0].clone()
    mixed[:, ::2] = 127
    random = [torch.randint(-128, 128, (n, width), dtype=torch.int8) for n in (rows, out)]
    for x, w in (low, (mixed, low[1]), (mixed, torch.full_like(low[1], 127)), random):
        assert torch.equal(matmul(x, w).long(), x.long() @ w.long().t())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (6, 6), (4, 4)])
def test_linear_of_the_decoded_operands(bits: tuple[int, int], symmetric: bool) -> None:
    """Each of the factors is rounded to 15 bits (2^-15) and each shift to a unit of a row of about 22 bits."""
    width, out = 300, 50
    top = (1 << (bits[0] - 1)) - 1
    w = torch.randint(-top, top + 1, (out, width), dtype=torch.int8)
    scale = torch.exp2(torch.rand(out, dtype=torch.float64) * 12 - 14)
    codes, zero, m, k = quantize_rows(*rows_of(hard_rows(64, width)), bits[1], symmetric)
    bias = torch.randn(out)
    x = (codes - zero).double() * m * torch.exp2(-k.double())
    want = x @ (w.double() * scale[:, None]).t()
    up = room(width, (1 << bits[1]) - 1, top)
    sums = w.sum(1, dtype=torch.int32)
    args = codes, None if symmetric else zero, m, k, w, *vector(scale), None if symmetric else sums
    got = real(*linear(*args, None, None, up))
    ordinary = want.abs().amax(-1) > 0
    for one, two in zip(got[ordinary], want[ordinary]):
        assert float((one - two).abs().max() / two.abs().max()) < 2.0**-14
    biased = real(*linear(*args, *row_of(bias), up))
    error = (biased - want - bias.double()).abs().amax(-1)
    assert bool((error <= torch.maximum(want.abs().amax(-1), bias.abs().max().double()) * 2.0**-14).all())
    assert torch.allclose(biased[-1], bias.double(), rtol=0, atol=1e-6)  # the row that is zero


def test_sums_that_could_leave_the_format_are_refused() -> None:
    assert room(16384, 255) == 1 and room(4, 127) == 14
    with pytest.raises(UnsupportedError, match="a sum of 65536 products"):
        room(65536, 255)


def test_rows_do_not_depend_on_their_neighbors() -> None:
    w = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    args = w, *vector(torch.rand(24)), None, None, None, room(64, 127)
    codes, _, m, k = quantize_rows(*rows_of(hard_rows(40, 64)))
    whole = linear(codes, None, m, k, *args)
    for part in (slice(0, 1), slice(3, 20), slice(39, 40)):
        alone = linear(codes[part], None, m[part], k[part], *args)
        assert all(torch.equal(one, two[part]) for one, two in zip(alone, whole))
