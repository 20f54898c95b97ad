from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason
from .test_rms_norm import W, X, normed

HALF = torch.bfloat16


def rms_norm_late(x: Tensor, w: Tensor) -> Tensor:
    return (w * normed(x)).to(x.dtype)


def test_change() -> None:
    assert change(rms_norm_late, X.to(HALF), w=W.to(HALF)) == """\
-%to = _to_copy(%x, dtype=f32) : f32[2, 3, 8]
-%pow = pow(%to, 2) : f32[2, 3, 8]
-%mean = mean(%pow, [-1], True) : f32[2, 3, 1]
-%add = add(%mean, 1e-06) : f32[2, 3, 1]
-%rsqrt = rsqrt(%add) : f32[2, 3, 1]
-%mul = mul(%to, %rsqrt) : f32[2, 3, 8]
-%mul_2 = mul(w, %mul) : f32[2, 3, 8]
-%to_2 = _to_copy(%mul_2, dtype=bf16) : bf16[2, 3, 8]
+%to_2 = qpass.rms_norm(%x, w, 1e-06, 0.0, True) : bf16[2, 3, 8]   # raise/rms_norm_late
"""
    assert change(lambda x, w: F.rms_norm(x, (8,), w, 1e-5), X, w=W) == """\
-%rms_norm = rms_norm(%x, [8], w, 1e-05) : f32[2, 3, 8]
+%rms_norm = qpass.rms_norm(%x, w, 1e-05, 0.0, True) : f32[2, 3, 8]   # raise/rms_norm_aten
"""


def test_equal_numbers() -> None:
    equal(ops.rms_norm, rms_norm_late, (2, 3, 8), w=(8,))
    equal(ops.rms_norm, lambda x, w: (normed(x) * w.float()).type_as(x), (2, 3, 8), w=(8,))
    equal(ops.rms_norm, lambda x, w: F.rms_norm(x, (8,), w, 1e-5), (2, 3, 8), w=(8,))


def test_near_miss() -> None:
    assert reason("rms_norm_late", rms_norm_late, X, w=W) == "x is float32: there is no rounding to be late"
    early = lambda x, w: w * normed(x).to(x.dtype)  # noqa: E731
    found = reason("rms_norm_late", early, X.to(HALF), w=W.to(HALF))
    assert found == "to_2: expected mul, found _to_copy"


def test_near_miss_of_aten() -> None:
    two = lambda x, w: F.rms_norm(x, (3, 8), w, 1e-5)  # noqa: E731
    assert reason("rms_norm_aten", two, X, w=torch.ones(3, 8)) == "rms_norm: expected a list of 1, found a list of 2"
    no_eps = lambda x, w: F.rms_norm(x, (8,), w)  # noqa: E731
    assert reason("rms_norm_aten", no_eps, X, w=W) == "rms_norm: rms_norm has other arguments than the pattern"
