"""Integer square root and the norms."""

from __future__ import annotations

import math

import pytest
import torch

from qpass.errors import UnsupportedError
from qpass.numerics.integer.dyadic import fit_one, row_of, vector
from qpass.numerics.integer.isqrt import isqrt
from qpass.numerics.integer.norm import layer_norm, rms_norm
from tests.numerics.integer.helpers import hard_rows, real, rel_rms, rows_of


def test_square_root_is_exact() -> None:
    roots = torch.cat([torch.arange(0, 300), torch.randint(0, 2**15, (2000,)), torch.tensor([46340, 46341])])
    ends = [roots**2, (roots**2 - 1).clamp(min=0), roots**2 + 2 * roots]
    values = torch.cat([*ends, torch.randint(0, 2**31, (200_000,))])
    assert all(int(r) == math.isqrt(int(v)) for r, v in zip(isqrt(values)[:20_000], values[:20_000]))
    root = isqrt(values)
    assert bool(((root * root <= values) & ((root + 1) ** 2 > values)).all())
    wide = torch.randint(0, 2**62, (2000,))
    assert [math.isqrt(int(v)) for v in wide] == isqrt(wide, 31).tolist()


@pytest.mark.parametrize("width", [32, 256, 4096, 16384])
def test_rms_norm(width: int) -> None:
    values, eps = hard_rows(64, width), 1e-6
    weight = torch.randn(width, dtype=torch.float64).exp()
    weight[0] = -0.3
    x, k = rows_of(values)
    got = real(*rms_norm(x, k, *vector(weight), *fit_one(width * eps)))
    want = values / (values.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    assert rel_rms(got[:-2], want[:-2]) <= 1e-4
    quiet = torch.arange(width) > 4  # channels beside the outliers have no error of their own
    assert rel_rms(got[:-3][:, quiet], want[:-3][:, quiet]) <= 1e-4
    assert float((got[-2:] - want[-2:]).abs().max()) <= 1e-4 and bool((got[-1] == 0).all())
    plain = real(*rms_norm(x, k, None, None, None, *fit_one(width * eps)))
    assert rel_rms(plain[:-2] * weight, want[:-2]) <= 1e-4


def test_rows_near_and_below_the_square_root_of_eps() -> None:
    values, eps = torch.randn(24, 64, dtype=torch.float64) * torch.exp2(-torch.arange(24.0))[:, None], 1e-5
    got = real(*rms_norm(*rows_of(values), None, None, None, *fit_one(64 * eps)))
    want = values / (values.square().mean(-1, keepdim=True) + eps).sqrt()
    assert all(rel_rms(one, two) <= 1e-4 for one, two in zip(got, want))


@pytest.mark.parametrize("width", [64, 4096])
def test_layer_norm(width: int) -> None:
    values, eps = hard_rows(64, width) + 3 * torch.randn(64, 1), 1e-5
    values[-1] = 5.0
    weight, bias = torch.rand(width, dtype=torch.float64) + 0.1, torch.randn(width, dtype=torch.float64)
    got = real(*layer_norm(*rows_of(values), *vector(weight), *row_of(bias), *fit_one(width * eps)))
    want = torch.nn.functional.layer_norm(values, (width,), weight, bias, eps)
    assert rel_rms(got[:-2], want[:-2]) <= 1.2e-4
    # a row that is constant has the bias as its norm, up to the rounding of its mean, one unit of 2^-28 · 5 / sqrt(eps)
    assert float((got[-1] - bias).abs().max()) <= 1e-4


def test_a_row_too_wide_is_refused() -> None:
    x = torch.zeros(1, 32768, dtype=torch.int32)
    with pytest.raises(UnsupportedError, match="a norm over 32768 channels"):
        rms_norm(x, x[:, :1], None, None, None, 1, 1)
