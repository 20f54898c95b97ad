"""Rows with one exponent: normalize, add, align."""

from __future__ import annotations

import torch

from qpass.numerics.integer.dyadic import vector
from qpass.numerics.integer.rows import LAST, add, align, concat, normalize, scale
from tests.numerics.integer.helpers import hard_rows, real, rel_rms, rows_of


def test_normalize_keeps_values() -> None:
    x, k = rows_of(hard_rows(64, 100))
    x = x >> torch.randint(0, 20, (64, 1))
    y, ky = normalize(x, k)
    top = y.abs().amax(-1)
    zero = x.abs().amax(-1) == 0
    assert torch.equal(real(x, k)[~zero], real(y, ky)[~zero])  # left shifts are exact
    assert bool(((top >= 2**28) & (top <= 2**29))[~zero].all()) and bool((ky[zero] == LAST).all())
    wide = torch.tensor([[2**31 - 1, -(2**31) + 1, 5]], dtype=torch.int32)
    y, ky = normalize(wide, torch.tensor([[3]], dtype=torch.int32))
    assert float((real(y, ky) - real(wide, torch.tensor([[3]]))).abs().max()) <= 2.0 ** -(int(ky) + 1)


def test_rows_smaller_than_the_last_exponent_are_lost_not_wrong() -> None:
    y, ky = normalize(torch.tensor([[3, 1000]], dtype=torch.int32), torch.tensor([[127 + 5]], dtype=torch.int32))
    assert ky.tolist() == [[LAST]] and y.tolist() == [[0, 31]]


def test_add_is_exact_to_the_coarser_row_and_zero_never_holds_back() -> None:
    a, b = hard_rows(64, 100), hard_rows(64, 100).flip(0)
    a[5] = 0.0
    got = real(*add(*rows_of(a), *rows_of(b)))
    largest = torch.maximum(a.abs().amax(-1), b.abs().amax(-1)).clamp(min=2.0**-100)
    error = (got - (a + b)).abs().amax(-1)
    assert bool((error <= largest * 2.0**-27).all())
    zero, k0 = torch.zeros(1, 3, dtype=torch.int32), torch.tensor([[-50]], dtype=torch.int32)
    x, k = rows_of(torch.tensor([[1e-6, 2e-6, -3e-6]]))
    assert torch.equal(real(*add(zero, k0, x, k)), real(x, k))


def test_sixty_four_adds_with_a_massive_activation() -> None:
    h = torch.randn(16, 512, dtype=torch.float64) * 0.05
    h[0, 5], h[0, 77] = 1000.0, -600.0
    x, k = rows_of(h)
    for _ in range(64):
        d = torch.randn(16, 512, dtype=torch.float64) * 0.08
        h = h + d
        x, k = add(x, k, *rows_of(d))
    others = torch.ones(512, dtype=torch.bool)
    others[[5, 77]] = False
    assert rel_rms(real(x, k)[:, others][:1], h[:, others][:1]) < 1e-4
    assert rel_rms(real(x, k)[1:], h[1:]) < 1e-6


def test_align_gives_one_exponent_a_token() -> None:
    heads = torch.randn(5, 4, 8, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 50.0, 0.0])[:, None]
    x, k = rows_of(heads)
    y, ky = align(x, k)
    assert ky.shape == (5, 1, 1)
    assert float((real(y, ky) - heads).abs().max()) <= float(heads.abs().max()) * 2.0**-27


def test_scale_is_one_rounding_and_powers_of_two_are_exact() -> None:
    x, k = rows_of(hard_rows(64, 100))
    factors = torch.exp2(torch.rand(100, dtype=torch.float64) * 12 - 6) * (1 - 2 * (torch.arange(100) % 2))
    for factor in (factors, torch.tensor([0.176776695], dtype=torch.float64), torch.tensor([-55.4256])):
        parts = vector(factor)
        held = (parts[0].double() * torch.exp2(-(parts[1] + parts[2]).double()))
        assert bool(((held - factor).abs() <= factor.abs() * 2.0**-15).all())
        got, want = scale(x, k, *parts), real(x, k) * held
        assert bool((got[0].abs() <= 1 << 29).all())
        top = real(x, k).abs().amax(-1, keepdim=True) * held.abs().max()
        assert bool(((real(*got) - want).abs() <= top * 2.0**-26).all())
    even = x >> 3 << 3
    for power in (-0.25, 8.0):
        got = real(*scale(even, k, *vector(torch.tensor([power]))))
        assert torch.equal(got, real(even, k) * power)


def test_concat_is_exact_to_the_coarser_row_and_shares_exponents() -> None:
    a, b = hard_rows(64, 100), hard_rows(64, 30).flip(0)
    got, k = concat(*rows_of(a), *rows_of(b))
    want = torch.cat([a, b], -1)
    assert got.shape == (64, 130) and k.shape == (64, 1)
    top = want.abs().amax(-1, keepdim=True)
    assert bool(((real(got, k) - want).abs() <= top * 2.0**-28).all())
    x, ka = rows_of(torch.randn(2, 1, 3, 8, dtype=torch.float64))
    heads = concat(x.expand(2, 4, 3, 8), ka, x.expand(2, 4, 3, 8), ka)  # an exponent that heads share
    assert heads[0].shape == (2, 4, 3, 16) and heads[1].shape == (2, 4, 3, 1)
