"""The rounding rule and the wide products, against Python's integers."""

from __future__ import annotations

import pytest
import torch

from qpass.numerics.integer.shift import msb, mul_high, mul_shift, rsh

EDGES = torch.tensor([0, 1, -1, 2, -2, 3, 2**30, -(2**30), 2**31 - 1, -(2**31) + 1, 12345, -12345], dtype=torch.int32)


def rule(a: int, k: int) -> int:
    return (a + (1 << (k - 1))) >> k if k > 0 else a << -k


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rsh_is_the_rule_for_counts_in_tensors_and_ints(dtype: torch.dtype) -> None:
    values = torch.cat([EDGES, torch.randint(-(2**31) + 1, 2**31, (200,)).to(torch.int32)]).to(dtype)
    for k in range(32):
        want = torch.tensor([rule(int(a), k) for a in values], dtype=dtype)
        assert torch.equal(rsh(values, k), want)
        assert torch.equal(rsh(values, torch.full_like(values, k)), want)
    small = torch.arange(-8, 8, dtype=dtype)
    for k in (-1, -20):
        assert torch.equal(rsh(small, k), small << -k)
        assert torch.equal(rsh(small, torch.full_like(small, k)), small << -k)


def test_ties_go_to_plus_infinity() -> None:
    assert rsh(torch.tensor([3, -3, 1, -1]), 1).tolist() == [2, -1, 1, 0]


def test_counts_beyond_the_dtype_give_zero() -> None:
    rows = torch.tensor([2**31 - 1, -(2**31), 5, -5], dtype=torch.int32)
    for k in (32, 33, 40, 1000):
        assert rsh(rows, k).tolist() == rsh(rows, torch.tensor(k)).tolist() == [0, 0, 0, 0]


def test_products_are_exact() -> None:
    a = torch.randint(-(2**30), 2**30 + 1, (1_000_000,)).to(torch.int32)
    b = torch.randint(0, 2**15, (1_000_000,)).to(torch.int32)
    a[:4], b[:4] = torch.tensor([2**30, -(2**30), 2**30, -1], dtype=torch.int32), 2**15 - 1
    for s in (1, 7, 14, 15):
        fits = a >> (15 - s)
        assert torch.equal(mul_shift(fits, b, s).long(), rsh(fits.long() * b.long(), s)), s
    assert torch.equal(mul_shift(a, -b).long(), rsh(a.long() * -b.long(), 15))
    wide = 65535 - b  # mantissas of 16 bits
    assert torch.equal(mul_shift(a >> 1, wide).long(), rsh((a >> 1).long() * wide.long(), 15))
    half = torch.randint(-(2**29), 2**29 + 1, (2, 1_000_000)).to(torch.int32)
    half[:, :2] = torch.tensor([[2**29, -(2**29)], [2**29, 2**29]])
    assert torch.equal(mul_high(*half).long(), rsh(half[0].long() * half[1].long(), 30))


def test_msb() -> None:
    values = torch.tensor([v for n in range(31) for v in (2**n, 2**n + (n > 0), 2 ** (n + 1) - 1)], dtype=torch.int64)
    want = torch.tensor([int(v).bit_length() - 1 for v in values])
    assert torch.equal(msb(values), want) and torch.equal(msb(values.to(torch.int32)).long(), want)
    assert msb(torch.tensor([2**62, 2**33 + 1])).tolist() == [62, 33]
