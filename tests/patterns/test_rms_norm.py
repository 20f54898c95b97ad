from __future__ import annotations

import torch
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason

X, W = torch.ones(2, 3, 8), torch.ones(8)


def normed(x: Tensor) -> Tensor:
    h = x.to(torch.float32)
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return w * normed(x).to(x.dtype)


def promoted(x: Tensor, w: Tensor) -> Tensor:
    h = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)
    return w * h.to(w.dtype)


def test_change() -> None:
    half = torch.bfloat16
    assert change(rms_norm, X.to(half), w=W.to(half)) == """\
-%to = _to_copy(%x, dtype=f32) : f32[2, 3, 8]
-%pow = pow(%to, 2) : f32[2, 3, 8]
-%mean = mean(%pow, [-1], True) : f32[2, 3, 1]
-%add = add(%mean, 1e-06) : f32[2, 3, 1]
-%rsqrt = rsqrt(%add) : f32[2, 3, 1]
-%mul = mul(%to, %rsqrt) : f32[2, 3, 8]
-%to_2 = _to_copy(%mul, dtype=bf16) : bf16[2, 3, 8]
-%mul_2 = mul(w, %to_2) : bf16[2, 3, 8]
+%mul_2 = qpass.rms_norm(%x, w, 1e-06) : bf16[2, 3, 8]   # raise/rms_norm
"""


def test_equal_numbers() -> None:
    equal(ops.rms_norm, rms_norm, (2, 3, 8), w=(8,))
    equal(ops.rms_norm, promoted, (2, 3, 8), w=(8,))
    equal(ops.rms_norm, lambda x, w: rms_norm(x, w).square(), (3, 8), w=(8,))


def test_factors_in_any_order() -> None:
    equal(ops.rms_norm, lambda x, w: normed(x).to(x.dtype) * w, (2, 3, 8), w=(8,))


def test_weight_in_float32() -> None:
    assert "qpass.rms_norm" in change(rms_norm, X.to(torch.bfloat16), w=W)


def test_near_miss() -> None:
    assert reason("rms_norm", rms_norm, X, w=X) == "the weight w has 3 dimensions, not one"
    other_dim = lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 1e-6))  # noqa: E731
    assert reason("rms_norm", other_dim, X, w=W) == "mean: expected the literal -1, found -2"


def test_near_miss_in_half_precision_throughout() -> None:
    low = lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))  # noqa: E731
    found = reason("rms_norm", low, X.to(torch.bfloat16), w=W.to(torch.bfloat16))
    assert found == "mul is torch.bfloat16, the pattern computes it in torch.float32"
