"""RMSNorm without a weight, as some use on queries, keys and values.

    y = (x32 · rsqrt(mean(x32², -1) + eps)).to(x.dtype)

before   %pow = pow(x, 2); %mean = mean(%pow, [-1], True) ... %norm = mul(x, %rsqrt)
after    %norm = qpass.rms_norm(x, None, eps, 0.0, True)
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule


@rule("rsqrt", x=(2, 3, 8))
def rms_norm_plain(x: Tensor, eps: float) -> Tensor:
    h = x.to(torch.float32)
    return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@rms_norm_plain.becomes
def rule_rms_norm_plain(x: Any, eps: Any) -> Any:
    return ops.rms_norm(x, None, eps, 0.0, True)
