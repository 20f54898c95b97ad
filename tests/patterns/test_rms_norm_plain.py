from __future__ import annotations

import torch
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason
from .test_rms_norm import X, normed


def rms_norm_plain(x: Tensor) -> Tensor:
    return normed(x).to(x.dtype)


def test_change() -> None:
    assert change(rms_norm_plain, X) == """\
-%pow = pow(%x, 2) : f32[2, 3, 8]
-%mean = mean(%pow, [-1], True) : f32[2, 3, 1]
-%add = add(%mean, 1e-06) : f32[2, 3, 1]
-%rsqrt = rsqrt(%add) : f32[2, 3, 1]
-%mul = mul(%x, %rsqrt) : f32[2, 3, 8]
+%mul = qpass.rms_norm(%x, None, 1e-06, 0.0, True) : f32[2, 3, 8]   # raise/rms_norm_plain
"""


def test_equal_numbers() -> None:
    equal(ops.rms_norm, rms_norm_plain, (2, 3, 8))


def test_near_miss() -> None:
    def shared(x: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * factor, factor

    assert reason("rms_norm_plain", shared, X) == "rsqrt has 2 uses, the pattern allows 1"
