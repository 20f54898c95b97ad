"""The printed algorithms lose what they are said to lose: each failure that was measured of them comes back."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from qpass.errors import UnsupportedError
from qpass.numerics.integer import norm as precise
from qpass.numerics.integer.dyadic import fit, fit_one
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.literal.activation import gated, sigmoid
from qpass.numerics.integer.literal.attention import probabilities
from qpass.numerics.integer.literal.exp import di_exp
from qpass.numerics.integer.literal.norm import layer_norm, rms_norm
from qpass.numerics.integer.literal.requant import quantize, requant, scale_of
from qpass.passes.integer.norm_inputs import fit_channels
from tests.numerics.integer.helpers import real, rel_rms, rows_of

TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
ONE = torch.tensor([1], dtype=torch.int32)


def whole(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def test_exp_of_fine_steps_is_a_line_an_octave() -> None:
    x = -torch.arange(0, 20 << 16)
    got, unit = di_exp(x, *whole(128, 23))  # steps of 2^-16
    assert int(unit) == 45590
    error = (got.double() / unit - torch.exp(x.double() / 65536)).abs()
    assert float(error.max()) == pytest.approx(4.4e-2, abs=5e-4)
    assert float(error.mean()) == pytest.approx(2.2e-3, abs=1e-4)
    octave = x >= -int(math.log(2) * 65536)
    relative = (error / torch.exp(x.double() / 65536))[octave]
    assert float(relative.max()) == pytest.approx(6.3e-2, abs=1e-3)


def test_exp_of_eight_bits_has_twelve_values() -> None:
    m, k = fit_one(15 / 255, 8)
    x, step = -torch.arange(256), m / 2**k
    got, unit = di_exp(x, *whole(m, k))
    assert int(unit) == 12 and int(got.max()) == 12
    error = (got.double() / unit - torch.exp(x * step)).abs()
    assert float(error.max()) == pytest.approx(7.1e-2, abs=1e-3)
    gone = x * step < -2.8  # all of the row but its first few octaves
    assert bool((got[gone] == 0).all()) and float(gone.double().mean()) > 0.8


def test_rounding_the_unit_changes_the_temperature() -> None:
    """e^(x s) becomes 2^(x / t): against 2^(x s log2 e) over all 8-bit dyadics with 0.01 <= s <= 15 / 255."""
    m, k = torch.meshgrid(torch.arange(128, 256), torch.arange(8, 15), indexing="ij")
    scale = m / torch.exp2(k.double())
    used = (scale >= 0.01) & (scale <= 15 / 255 + 1e-4)
    unit = di_exp(torch.zeros(int(used.sum()), dtype=torch.int64), m[used], k[used])[1]
    error = 1 / (unit * scale[used] * math.log2(math.e)) - 1
    assert 0.035 <= float(error.abs().max()) <= 0.04
    m15, k15 = fit_one(15 / 255, 8)
    unit = int(di_exp(torch.tensor([0]), *whole(m15, k15))[1])
    assert 2 ** (-10 / (m15 / 2**k15) / unit) == pytest.approx(5.45e-5, rel=0.01)


def _printed(p: list[int], m: int, k: int, most: int) -> tuple[list[int], int, int, int]:
    """Section by section as printed, in Python's integers, which have no width."""
    low, extent = min(p), max(max(p) - min(p), 1)
    quotient = (256 * most << k) // (extent * m)
    k_y = quotient.bit_length() - 1
    drop = k - k_y
    m_y = (extent * m // most) >> drop if drop >= 0 else (extent * m // most) << -drop
    return [(value - low) * most // extent for value in p], (-low * most) // extent, m_y, k_y


def test_requantization_is_the_printed_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randint(-(2**26), 2**26, (2000, 5), generator=generator)
    p[:20] = torch.randint(1000, 1004, (20, 5), generator=generator)
    m = torch.randint(1 << 14, 1 << 15, (2000, 1), generator=generator)
    k = torch.randint(32, 46, (2000, 1), generator=generator)
    codes, zero, m_y, k_y = requant(p, m, k, 255)
    for row in range(2000):
        want = _printed(p[row].tolist(), int(m[row]), int(k[row]), 255)
        assert (codes[row].tolist(), int(zero[row]), int(m_y[row]), int(k_y[row])) == want


def test_the_mantissa_can_have_nine_bits_and_is_too_small() -> None:
    for power in (0, 1, -1):  # scales 1, 1/2, 2
        m_y, k_y = scale_of(*whole(255 << (1 if power < 0 else 0), 1, max(power, 0)), 255)
        assert (int(m_y), int(m_y) / 2.0 ** int(k_y)) == (256, 2.0**-power)
    extent = torch.randint(1000, 2**27, (200_000,))
    pair, k = torch.randint(128, 256, (2, 200_000)), torch.randint(20, 40, (200_000,))
    m = pair[0] * pair[1]
    m_y, k_y = scale_of(extent, m, k, 255)
    bias = m_y * torch.exp2(-k_y.double()) / (extent.double() * m / 255 * torch.exp2(-k.double())) - 1
    assert float(bias.max()) <= 0 and -0.008 <= float(bias.min()) <= -0.007
    assert float(bias.mean()) == pytest.approx(-0.0026, abs=4e-4)


def test_codes_and_zero_floored_apart_are_off_by_more_than_half_a_step() -> None:
    values = torch.randn(2000, 1024, dtype=torch.float64)
    x, k = rows_of(values)
    codes, zero, m, k_y = quantize(x, k, 8, False)
    scale = m * torch.exp2(-k_y.double())
    error = ((codes - zero) * scale - real(x, k)) / scale
    assert 1.0 < float(error.abs().max()) < 2.9 and float(error.pow(2).mean().sqrt()) > 1.3 * 12**-0.5
    row = torch.tensor([[1000, 1001, 1003]])
    assert int(requant(row, *(part[:, None] for part in whole(1, 0)), 255)[1]) == -85000
    flat = torch.zeros(2, 8, dtype=torch.int32)  # p_max = p_min
    assert bool((quantize(flat, flat[:, :1], 8, False)[0] == -128).all())


def _scores(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    c, k = (torch.full((len(values), 1), part, dtype=torch.int32) for part in fit_one(2.0**-20))
    whole_scores = torch.round(values * 2**20).to(torch.int32)
    return whole_scores, torch.ones_like(whole_scores, dtype=torch.bool), c, k


@pytest.mark.parametrize(("sigma", "length", "error", "row_sum"), [
    (3.0, 64, 0.197, None), (3.0, 512, 0.406, None), (3.0, 2048, 0.657, None), (1.0, 2048, 0.944, 0.04),
])  # fmt: skip
def test_softmax_rows_collapse(sigma: float, length: int, error: float, row_sum: float | None) -> None:
    torch.manual_seed(5)
    values, v = torch.randn(200, length, dtype=torch.float64) * sigma, torch.randn(length, 64, dtype=torch.float64)
    p = probabilities(*_scores(values), TABLE_T, 15 << 15).double() / 128
    want = torch.softmax(values, -1)
    assert rel_rms(p @ v, want @ v) == pytest.approx(error, rel=0.2)
    if row_sum is not None:
        assert float(p.sum(-1).mean()) == pytest.approx(row_sum, abs=0.02)


@pytest.mark.parametrize(("sigma", "outliers", "error"), [(1.0, False, 0.419), (2.0, False, 0.889), (2.0, True, 0.627)])
def test_swiglu_snaps(sigma: float, outliers: bool, error: float) -> None:
    torch.manual_seed(9)
    g = torch.randn(256, 4096, dtype=torch.float64) * sigma - 0.3
    u = torch.randn(256, 4096, dtype=torch.float64)
    if outliers:
        channels = torch.randint(0, 4096, (8,))
        g[:, channels] *= 6
        u[:, channels] *= 10
    got = real(*gated(*rows_of(g), *rows_of(u), "silu", ONE, ONE, ONE, TABLE_T))
    assert rel_rms(got, F.silu(g) * u) == pytest.approx(error, rel=0.25)


def test_a_sigmoid_below_the_maximum_of_its_row_is_zero() -> None:
    """At a row's maximum of 12 a true 0.9 becomes 0."""
    m, k = fit_one(12 / 255, 8)
    d = torch.tensor([[47, 255]])
    assert float(torch.sigmoid(torch.tensor(47 * m / 2**k))) > 0.9
    assert int(sigmoid(d, *(part[:, None] for part in whole(m, k)), ONE)[0, 0]) == 0


def test_activations_that_are_not_printed_are_refused() -> None:
    x, k = rows_of(torch.randn(2, 8))
    with pytest.raises(UnsupportedError, match="the activation 'gelu' in mode 'literal'"):
        gated(x, k, x, k, "gelu", ONE, ONE, ONE, TABLE_T)
    relu = real(*gated(x, k, x, k, "relu", ONE, ONE, ONE, TABLE_T))
    assert rel_rms(relu, real(x, k).clamp(min=0) * real(x, k)) <= 0.03


def _channels(kind: str) -> torch.Tensor:
    torch.manual_seed(7)
    x = torch.randn(64, 4096, dtype=torch.float64) * torch.exp(torch.randn(4096, dtype=torch.float64) * 0.4)
    if kind != "plain":
        wide = torch.randperm(4096)[:6]
        x[:, wide] *= torch.tensor([20.0, 30.0, 50.0, 100.0, 200.0, 30.0])
        if kind == "massive":
            x[0, wide[0]], x[0, wide[1]] = 1500.0, -900.0
    return x


@pytest.mark.parametrize(("kind", "least"), [("plain", 0.03), ("outliers", 0.06), ("massive", 0.1)])
def test_integer_ratios_of_scales_break_the_norm(kind: str, least: float) -> None:
    """Against the norm of the same codes; measured 0.061, 0.137 and 0.240 on rows of this kind."""
    x = _channels(kind)
    ends = x.amin(0), x.amax(0)
    channels, _ = fit_channels(*ends, literal=True)
    got = real(*rms_norm(*rows_of(x), None, None, None, 0, 0, channels))
    step, zero = _static(*ends)
    codes = (torch.round(x / step) + zero).clamp(0, 255) - zero
    want = codes * step
    want = want / want.square().mean(-1, keepdim=True).sqrt()
    assert least <= rel_rms(got, want) <= 4 * least


def _static(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    m, k = fit((high.clamp(min=0) - low.clamp(max=0)) / 255, 8)
    step = m * torch.exp2(-k.double())
    return step, torch.round(-low.clamp(max=0) / step)


def test_a_norm_of_equal_channels_is_a_norm() -> None:
    """Where all scales are one the printed form is right but for its floors: of the root and of the quotients."""
    x = torch.randn(64, 1024, dtype=torch.float64).clamp(-3, 3)
    x[0], x[1] = 3, -3
    channels, _ = fit_channels(x.amin(0), x.amax(0), literal=True)
    assert bool((channels[3] == 1).all())
    got = real(*rms_norm(*rows_of(x), None, None, None, 0, 0, channels))
    want = x / x.square().mean(-1, keepdim=True).sqrt()
    assert rel_rms(got, want) <= 0.01
    rows = x + 0.5
    channels, _ = fit_channels(rows.amin(0), rows.amax(0), literal=True)
    got = real(*layer_norm(*rows_of(rows), None, None, None, None, None, 0, 0, channels))
    exact = real(*precise.layer_norm(*rows_of(rows), None, None, None, None, None, *fit_one(1e-9)))
    # codes are rounded, 1 / sqrt(12) of a step of 6 / 255, and the mean is floored, half a step more
    assert rel_rms(got[2:], exact[2:]) <= 7 / 255 * (1 / 12 + 1 / 4) ** 0.5 * 1.1
