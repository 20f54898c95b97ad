from __future__ import annotations

import torch
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason
from .test_rms_norm import W, X, normed


def rms_norm_offset(x: Tensor, w: Tensor) -> Tensor:
    return (normed(x) * (1.0 + w.float())).type_as(x)


def test_change() -> None:
    half = torch.bfloat16
    assert change(rms_norm_offset, X.to(half), w=W.to(half)) == """\
-%to = _to_copy(%x, dtype=f32) : f32[2, 3, 8]
-%pow = pow(%to, 2) : f32[2, 3, 8]
-%mean = mean(%pow, [-1], True) : f32[2, 3, 1]
-%add = add(%mean, 1e-06) : f32[2, 3, 1]
-%rsqrt = rsqrt(%add) : f32[2, 3, 1]
-%mul = mul(%to, %rsqrt) : f32[2, 3, 8]
-%to_2 = _to_copy(w, dtype=f32) : f32[8]
-%add_2 = add(%to_2, 1.0) : f32[8]
-%mul_2 = mul(%mul, %add_2) : f32[2, 3, 8]
-%type_as = _to_copy(%mul_2, dtype=bf16) : bf16[2, 3, 8]
+%type_as = qpass.rms_norm(%x, w, 1e-06, 1.0, True) : bf16[2, 3, 8]   # raise/rms_norm_offset
"""


def test_equal_numbers() -> None:
    equal(ops.rms_norm, rms_norm_offset, (2, 3, 8), w=(8,))


def test_near_miss() -> None:
    twice = lambda x, w: (normed(x) * (2.0 + w.float())).type_as(x)  # noqa: E731
    assert reason("rms_norm_offset", twice, X, w=W) == "add_2: expected the literal 1.0, found 2.0"
