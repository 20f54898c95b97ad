"""Mode ``paper``: what eight bits into each operator cost, and that the operators add nothing to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qpass.numerics.integer import norm as precise
from qpass.numerics.integer.channels import aligned, channel_codes
from qpass.numerics.integer.dyadic import fit_one, row_of, vector
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.paper.activation import activated, eight_bits, gated
from qpass.numerics.integer.paper.attention import probabilities, span
from qpass.numerics.integer.paper.norm import layer_norm, rms_norm
from qpass.passes.integer.norm_inputs import fit_channels
from tests.numerics.integer.helpers import hard_rows, real, rel_rms, rows_of

TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
LOG2E = 1.4426950408889634
KEPT = 1 << 15


def factor(scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    return vector(torch.tensor([scale * LOG2E], dtype=torch.float64))


def _scores(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    c, k = (torch.full((len(values), 1), part, dtype=torch.int32) for part in fit_one(LOG2E * 2.0**-20))
    whole = torch.round(values * 2**20).to(torch.int32)
    return whole, torch.ones_like(whole, dtype=torch.bool), c, k


def _clip(c: float) -> int:
    return round(c * LOG2E * KEPT)


def _grid(values: torch.Tensor, c: float) -> torch.Tensor:
    """What eight bits of [max - c, max] leave of softmax, in float64."""
    below = values - values.amax(-1, keepdim=True)
    below = below.clamp(min=-c) if c else below
    step = -below.amin(-1, keepdim=True) / 255
    return torch.softmax(torch.round(below / step) * step, -1)


@pytest.mark.parametrize(("sigma", "length"), [(3.0, 64), (3.0, 512), (8.0, 512), (1.0, 2048)])
@pytest.mark.parametrize("c", [8.0, 15.0, 0.0])
def test_probabilities(sigma: float, length: int, c: float) -> None:
    """Within half of 1/255 for their own rounding, and what half a step of the scores and 1.6e-4 of 2^-z do to p."""
    values = torch.randn(500, length, dtype=torch.float64) * sigma
    got = probabilities(*_scores(values), TABLE_T, _clip(c)).double() / 255
    below = values - values.amax(-1, keepdim=True)
    clipped = below.clamp(min=-c) if c else below
    p, step = torch.softmax(clipped, -1), -clipped.amin(-1, keepdim=True) / 255
    # e^±(step (1 + 2^-7) / 2) for numerator and for sum: p(1 - p) of it reaches p
    most = torch.expm1(step * 1.02) * p + 0.5 / 255 + 4e-4
    assert bool(((got - p).abs() <= most).all())
    assert float(got.max()) <= 1 and bool((got.gather(-1, values.argsort(-1)).diff(dim=-1) >= 0).all())


def test_a_million_short_rows_against_the_grid() -> None:
    """Rows of any spread, on average within half a unit of 1/255 of the exact softmax of the eight-bit grid."""
    values = torch.randn(1_000_000, 6, dtype=torch.float64) * torch.exp2(torch.rand(1_000_000, 1) * 8 - 4)
    got = probabilities(*_scores(values), TABLE_T, _clip(15))
    assert float((got - _grid(values, 15) * 255).abs().mean()) <= 0.5
    off = (got.sum(-1) - 255).abs()
    assert int(off.max()) <= 3 and int(got.min()) >= 0  # six roundings of half a unit


def test_eight_bits_of_probability_collapse_in_long_rows() -> None:
    """Why ``precise`` puts the division off: 0.012, 0.027, 0.047 and 0.752 were measured of these rows."""
    found = []
    for sigma, length in ((3.0, 64), (3.0, 512), (3.0, 2048), (1.0, 2048)):
        values = torch.randn(200, length, dtype=torch.float64) * sigma
        v = torch.randn(length, 64, dtype=torch.float64)
        p = probabilities(*_scores(values), TABLE_T, _clip(15)).double() / 255
        found.append(rel_rms(p @ v, torch.softmax(values, -1) @ v))
    assert found == pytest.approx([0.012, 0.027, 0.047, 0.752], rel=0.25)


@pytest.mark.parametrize("c", [0.5, 8.0, 15.0, 20.0, 1000.0])
def test_clip_in_units_of_scores(c: float) -> None:
    scale = torch.exp2(-torch.arange(2.0, 40.0, 0.37, dtype=torch.float64))
    parts = [fit_one(LOG2E * float(one)) for one in scale]
    m, k = (torch.tensor(part, dtype=torch.int32) for part in zip(*parts))
    want = (c / scale).clamp(1, 2**30)
    assert bool(((span(_clip(c), m, k) - want).abs() <= 0.5 + want * 1.6e-4).all())


def test_masked_scores_are_as_if_they_were_not_there() -> None:
    values = torch.randn(50, 40, dtype=torch.float64) * 4
    whole, keep, c, k = _scores(values)
    keep[:, 25:] = False
    whole[:, 25:] = 2**29
    got = probabilities(whole, keep, c, k, TABLE_T, _clip(15))
    assert torch.equal(got[:, :25], probabilities(whole[:, :25], keep[:, :25], c, k, TABLE_T, _clip(15)))
    assert bool((got[:, 25:] == 0).all())
    assert bool((probabilities(whole, torch.zeros_like(keep), c, k, TABLE_T, 0) == 0).all())


@pytest.mark.parametrize(("sigma", "outliers"), [(1.0, False), (2.0, False), (2.0, True)])
def test_swiglu(sigma: float, outliers: bool) -> None:
    """The operator alone within 5e-3, a sigmoid of seven bits; the grids of its operands 0.012 to 0.015 beside that."""
    g = torch.randn(300, 4096, dtype=torch.float64) * sigma - 0.3
    u = torch.randn(300, 4096, dtype=torch.float64)
    if outliers:
        channels = torch.randint(0, 4096, (8,))
        g[:, channels] *= 6
        u[:, channels] *= 10
    got = real(*gated(*rows_of(g), *rows_of(u), "silu", *factor(), TABLE_T))
    grids = [real(d * m, k) for d, m, k in (eight_bits(*rows_of(g)), eight_bits(*rows_of(u)))]
    assert rel_rms(got, F.silu(grids[0]) * grids[1]) <= 6e-3
    assert rel_rms(got, F.silu(g) * u) <= (0.05 if outliers else 0.018)


def test_smoothing_is_a_dyadic_of_the_argument() -> None:
    """FSBR's 1/s on eight bits: better than none, where dividing integers by a rounded s is worse than none."""
    g = torch.randn(64, 4096, dtype=torch.float64) * 2 - 0.3
    u = torch.randn(64, 4096, dtype=torch.float64)
    u[:, torch.randperm(4096)[:40]] *= 15
    s = (u.abs().amax(0) / g.abs().amax(0)).sqrt().clamp(0.2, 8)
    want = F.silu(g) * u
    plain = rel_rms(real(*gated(*rows_of(g), *rows_of(u), "silu", *factor(), TABLE_T)), want)
    smooth = rel_rms(real(*gated(*rows_of(g * s), *rows_of(u / s), "silu", *vector(LOG2E / s), TABLE_T)), want)
    assert smooth <= 0.02 < 0.035 <= plain
    d, m, k = eight_bits(*rows_of(g * s))
    alpha = s.round().clamp(min=1).int()
    argument = real(torch.div(d, alpha, rounding_mode="floor") * m, k)
    du, mu, ku = eight_bits(*rows_of(u / s))
    assert rel_rms(torch.sigmoid(argument) * real(d * m, k) * real(du * mu, ku), want) > plain


@pytest.mark.parametrize("kind", ["silu", "quick_gelu", "gelu", "gelu_tanh", "relu"])
def test_plain_activations_of_the_same_codes(kind: str) -> None:
    x = torch.randn(200, 1024, dtype=torch.float64) * 3
    got = real(*activated(*rows_of(x), kind, *factor(1.702 if kind == "quick_gelu" else 1.0), TABLE_T))
    d, m, k = eight_bits(*rows_of(x))
    grid = real(d * m, k)
    oracle = {"silu": F.silu, "quick_gelu": lambda v: v * torch.sigmoid(1.702 * v), "relu": F.relu, "gelu": F.gelu,
              "gelu_tanh": lambda v: F.gelu(v, approximate="tanh")}[kind]  # fmt: skip
    assert bool(((got - oracle(grid)).abs() <= grid.abs() * (0.5 / 128 + 3e-4) + 1e-6).all())


@pytest.mark.parametrize(("kind", "approximate"), [("smoothed_gelu", "none"), ("smoothed_gelu_tanh", "tanh")])
def test_smoothed_gelu_of_the_same_codes(kind: str, approximate: str) -> None:
    """FSBR's x · Phi(x v): the polynomial is of x v, as in mode ``precise``."""
    x, v = torch.randn(200, 256, dtype=torch.float64) * 3, torch.rand(256, dtype=torch.float64) * 1.9 + 0.1
    got = real(*activated(*rows_of(x), kind, *vector(v), TABLE_T))
    d, m, k = eight_bits(*rows_of(x))
    grid = real(d * m, k)
    want = F.gelu(grid * v, approximate=approximate) / v
    assert bool(((got - want).abs() <= grid.abs() * (0.5 / 128 + 3e-4) + 1e-6).all())


@pytest.mark.parametrize("width", [64, 4096])
def test_norm_of_the_same_codes(width: int) -> None:
    """Ratios of scales with eight fraction bits: 2e-4 of the norm, where whole ones are off by up to 0.24."""
    x = hard_rows(400, width)[:-3] * torch.exp(torch.randn(width, dtype=torch.float64) * 0.4)
    low, high = x.amin(0), x.amax(0)
    channels, unit = fit_channels(low, high, literal=False)
    grid = channel_codes(*rows_of(x), channels) * _step(channels)
    error = (grid - x).abs() / _step(channels)
    assert float(error[(x > low * 0.99) & (x < high * 0.99)].max()) <= 0.52
    eps = fit_one(width * 1e-6 / unit**2)
    weight, bias = torch.rand(width, dtype=torch.float64) + 0.5, torch.randn(width, dtype=torch.float64)
    got = real(*rms_norm(*rows_of(x), *vector(weight), *eps, channels))
    want = grid / (grid.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    assert rel_rms(got, want) <= 2e-3
    got = real(*layer_norm(*rows_of(x), *vector(weight), *row_of(bias), *eps, channels))
    assert rel_rms(got, F.layer_norm(grid, (width,), weight, bias, 1e-6)) <= 2e-3


def _step(channels: torch.Tensor) -> torch.Tensor:
    return 1 / real(channels[0], channels[1])


def test_channels_far_apart_zero_and_beyond_their_range() -> None:
    low, high = torch.tensor([-1.0, 0.0, -2.0**-30, 5.0, -900.0]), torch.tensor([1.0, 0.0, 2.0**-30, 6.0, 1500.0])
    for literal in (False, True):
        channels, _ = fit_channels(low, high, literal=literal)
        assert int(channels[3].min()) >= 1 and int(channels[3].max()) < 1 << 22 and channels.dtype == torch.int32
    x = torch.tensor([[40.0, 3.0, 1.0, 0.0, -4000.0], [0.0] * 5, [-1.0, 0.0, 0.0, 6.0, 1500.0]])
    codes = channel_codes(*rows_of(x), channels) + channels[2]
    assert codes[0].tolist() == [255, 255, 255, 0, 0] and bool((codes[1] == channels[2]).all())
    channels, _ = fit_channels(low, high, literal=False)
    assert int(aligned(*rows_of(x), channels).abs().max()) <= 2**30
    assert rel_rms(real(*precise.rms_norm(*rows_of(x[:1]), None, None, None, 1, 30)), x[:1]) > 0.1  # a norm, not x
