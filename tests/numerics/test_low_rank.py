"""Low-rank factors against numpy's singular values: G35, G36, G37, G39, as properties over random matrices."""

import math

import numpy as np
import pytest
import torch

from qpass.errors import RecipeError
from qpass.formats import Format
from qpass.numerics import codec, low_rank

UNIT = 2.0**-24
SHAPES = [(1, 1), (1, 9), (9, 1), (7, 7), (16, 40), (40, 16), (33, 64), (96, 65)]


def random_error(seed):
    """A matrix of some shape whose rows, columns and spectrum differ in size."""
    draw = torch.Generator().manual_seed(seed)
    rows, width = SHAPES[seed % len(SHAPES)]
    error = torch.randn(rows, width, generator=draw) * 10 ** float(torch.randn(1, generator=draw))
    if seed % 3 == 1:
        error *= torch.randn(rows, 1, generator=draw).exp() * torch.randn(width, generator=draw).exp()
    if seed % 3 == 2:
        error += 3 * torch.randn(rows, 2, generator=draw) @ torch.randn(2, width, generator=draw)
    return error


def random_moment(width, seed):
    """X Xᵀ of inputs with outlier channels, of fewer rows than channels for every other seed."""
    draw = torch.Generator().manual_seed(seed + 1000)
    x = torch.randn((width // 2 + 1) if seed % 2 else 3 * width, width, generator=draw)
    x *= 1 + 20 * (torch.rand(width, generator=draw) < 0.1)
    return x.T @ x


def tails(matrix):
    """‖M - M_r‖_F for r = 0 .. min(N, K), from numpy."""
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return [math.sqrt(float((values[rank:] ** 2).sum())) for rank in range(len(values) + 1)]


def rounding_of(up, down, lower=None):
    """The most that rounding U and V to float32 can move U V, in the norm of L; and float64's own share."""
    size = up.double().abs() @ down.double().abs()
    return 2.1 * UNIT * low_rank.norm(size, None if lower is None else lower.abs())


@pytest.mark.parametrize("seed", range(48))
def test_g35_eckart_young(seed):
    error = random_error(seed)
    want = tails(error)
    last = math.inf
    for rank in range(min(error.shape) + 1):
        up, down = low_rank.factors(error, rank)
        assert up.shape == (len(error), rank) and down.shape == (rank, error.shape[1])
        left = low_rank.norm(error.double() - up.double() @ down.double())
        slack = rounding_of(up, down) + 1e-12 * want[0]
        assert abs(left - want[rank]) <= slack
        assert left <= last + slack
        last = left
    assert last <= slack  # nothing is left at full rank


@pytest.mark.parametrize("seed", range(24))
def test_no_other_factors_of_that_rank_do_better(seed):
    error = random_error(seed).double()
    rank = max(1, min(error.shape) // 3)
    up, down = low_rank.factors(error.float(), rank)
    mine = low_rank.norm(error - up.double() @ down.double())
    other = torch.randn(rank, error.shape[1], dtype=torch.float64)
    for _ in range(5):  # alternating least squares only ever gets nearer
        left = torch.linalg.lstsq(other.T, error.T).solution.T
        other = torch.linalg.lstsq(left, error).solution
        assert mine <= low_rank.norm(error - left @ other) + rounding_of(up, down) + 1e-9 * low_rank.norm(error)


@pytest.mark.parametrize("seed", range(48))
def test_g37_weighted_bound(seed):
    error = random_error(seed)
    found = low_rank.metric(random_moment(error.shape[1], seed), 0.01)
    lower = found.lower
    want = tails(error.double() @ lower)
    for rank in {0, 1, min(2, min(error.shape)), min(error.shape) // 2, min(error.shape)}:
        up, down = low_rank.factors(error, rank, lower)
        left = low_rank.norm(error.double() - up.double() @ down.double(), lower)
        slack = rounding_of(up, down, lower) + 1e-10 * want[0]
        assert left <= want[0] + slack  # the fact
        assert abs(left - want[rank]) <= slack  # and it is the best there is
        plain = [part.double() for part in low_rank.factors(error, rank)]
        assert left <= low_rank.norm(error.double() - plain[0] @ plain[1], lower) + slack
        assert low_rank.norm(error.double() - plain[0] @ plain[1]) <= (
            low_rank.norm(error.double() - up.double() @ down.double()) + rounding_of(*plain) + slack
        )


@pytest.mark.parametrize("factor", ["int8", "f16"])
@pytest.mark.parametrize("seed", range(24))
def test_g36_what_is_left_is_measured_on_rounded_factors(seed, factor):
    error = random_error(seed)
    found = low_rank.metric(random_moment(error.shape[1], seed), 0.01) if seed % 2 else None
    lower = None if found is None else found.lower
    rank, dtype = min(4, *error.shape), torch.bfloat16 if seed % 4 < 2 else torch.float32
    got = low_rank.fit(error, rank, factor, dtype, lower)
    assert got.up.dtype is got.down.dtype is dtype
    kept = [rows_rounded(part.double()) if factor == "int8" else part.double() for part in (got.up, got.down)]
    metric = torch.eye(error.shape[1]).double() if lower is None else lower
    assert got.before == pytest.approx(float((error.double() @ metric).norm()), rel=1e-12)
    # in float32 a value between two codes may take the other one, which is as near
    want = float(((error.double() - kept[0] @ kept[1]) @ metric).norm())
    assert got.after == pytest.approx(want, rel=1e-3, abs=1e-3 * got.before)
    assert got.helps == (got.after < got.before)
    torch.testing.assert_close(got.kept[0].double(), kept[0], rtol=0, atol=float(kept[0].abs().max()) / 100)


def rows_rounded(part):
    """127 steps a row, in float64."""
    scale = part.abs().amax(1, keepdim=True).clamp(min=1e-300) / 127
    return torch.round(part / scale) * scale


def test_each_column_of_u_is_as_long_as_its_row_of_v():
    error = random_error(12)
    for lower in (None, low_rank.metric(random_moment(error.shape[1], 12), 0.01).lower):
        up, down = low_rank.factors(error, 5, lower)
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))
    values = torch.linalg.svdvals(error.double())[:5].sqrt().float()
    torch.testing.assert_close(low_rank.factors(error, 5)[0].norm(dim=0), values)


def test_the_size_of_the_moment_does_not_matter():
    error, moment = random_error(6), random_moment(64, 6)
    one, two = (low_rank.factors(error, 3, low_rank.metric(scale * moment, 0.01).lower) for scale in (1.0, 2.0**-20))
    torch.testing.assert_close(one[0] @ one[1], two[0] @ two[1])


def test_inputs_of_one_size_give_the_plain_form():
    error = random_error(4)
    plain, weighted = low_rank.factors(error, 3), low_rank.factors(error, 3, 7 * torch.eye(40).double())
    torch.testing.assert_close(plain[0] @ plain[1], weighted[0] @ weighted[1])


def test_factors_that_do_not_help():
    """An error that avoids the direction of nearly all inputs, as GPTQ's does: rounded factors put some into it."""
    direction = torch.nn.functional.normalize(torch.randn(32).double(), dim=0)
    error = torch.randn(16, 32).double()
    error = (error - torch.outer(error @ direction, direction)).float()
    lower = low_rank.metric(1e10 * torch.outer(direction, direction) + torch.eye(32).double(), 1e-12).lower
    rounded = low_rank.fit(error, 4, "int8", torch.float32, lower)
    assert not rounded.helps and rounded.after > rounded.before
    # and those that a 16-bit float cannot hold
    tiny = low_rank.fit(torch.randn(8, 8) * 1e-18, 2, "f16", torch.float16)
    assert not tiny.helps and tiny.after == tiny.before
    huge = low_rank.fit(torch.randn(8, 8) * 1e12, 2, "f16", torch.float16)
    assert not huge.helps  # not a number


@pytest.mark.parametrize("factor", ["int8", "f16"])
def test_edges(factor):
    zero = low_rank.fit(torch.zeros(6, 10), 2, factor, torch.float32)
    assert zero.before == zero.after == 0 and not zero.helps and torch.isfinite(zero.up).all()
    none = low_rank.fit(torch.randn(6, 10), 0, factor, torch.float32)
    assert none.up.shape == (6, 0) and none.down.shape == (0, 10) and none.after == none.before and not none.helps
    exact = low_rank.fit(torch.outer(torch.ones(6), torch.arange(10.0)), 3, "f16", torch.float32)  # rank 1
    assert exact.after < 1e-5 * exact.before and torch.isfinite(exact.down).all()
    with pytest.raises(RecipeError, match=r"a branch of rank 7 for a weight of 6 x 10 .*Fix: use a rank of at most 6"):
        low_rank.check_rank(7, (6, 10), "w")
    with pytest.raises(RecipeError, match="a branch of rank 7 for a weight of 6 x 10"):
        low_rank.factors(torch.randn(6, 10), 7)


def test_damping():
    moment = random_moment(24, 1)  # singular: fewer rows than channels
    found = low_rank.metric(moment, 0.01)
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(24).double()
    torch.testing.assert_close(found.lower @ found.lower.T, damped)
    assert found.times == 0 and torch.equal(found.lower, found.lower.tril())
    bent = torch.diag(torch.tensor([-0.05] + [1.0] * 23))  # not quite a second moment
    assert low_rank.metric(bent, 0.01).times == 1
    assert low_rank.metric(-torch.eye(3), 0.01) is None and low_rank.metric(torch.zeros(3, 3), 0.01) is None
    assert low_rank.metric(torch.full((3, 3), math.nan), 0.01) is None


@pytest.mark.parametrize("rank", [2, 24])
@pytest.mark.parametrize("flat", [True, False])
def test_large_ones_lose_nothing_that_counts(monkeypatch, rank, flat):
    monkeypatch.setattr(low_rank, "FULL_UP_TO", 100)
    matrix = torch.randn(300, 420).double() * (1 if flat else torch.linspace(0.1, 4, 420))
    want = tails(matrix)[rank]
    left, values, right = low_rank.largest(matrix, rank)
    rest = float((matrix - left * values @ right).norm())
    assert want <= rest * (1 + 1e-12) and rest <= want * 1.001
    torch.testing.assert_close(left.T @ left, torch.eye(rank).double())
    again = low_rank.largest(matrix, rank)
    assert torch.equal(again[0], left)  # a fixed start
    assert low_rank.largest(torch.zeros(300, 420).double(), rank)[1].abs().max() == 0
    monkeypatch.setattr(low_rank, "_ROUNDS", 1)  # not settled: all of them, then
    assert float((matrix - torch.linalg.multi_dot([(full := low_rank.largest(matrix, rank))[0], full[1].diag(),
                                                   full[2]])).norm()) == pytest.approx(want, rel=1e-9)  # fmt: skip


def test_g39_flat_spectra_gain_little():
    weight = torch.randn(1024, 1024)
    error = weight - codec.fake_quantize(weight, Format.parse("e2m1:g256:sym"))
    left, _, _ = low_rank.largest(error.double(), 128)
    for rank, want in ((8, 0.985), (128, 0.790)):
        some = left[:, :rank]
        rest = error.double() - some @ (some.T @ error.double())
        assert float(rest.norm() / error.double().norm()) == pytest.approx(want, abs=0.005)
