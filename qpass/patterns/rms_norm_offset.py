"""RMSNorm with its weight stored less one, and rounded once.

    y = (x32 · rsqrt(mean(x32², -1) + eps) · (1 + w32)).to(x.dtype)

before   ... %add_2 = add(%to_2, 1.0); %mul_2 = mul(%mul, %add_2); %norm = to(%mul_2, bf16)
after    %norm = qpass.rms_norm(x, norm.weight, eps, 1.0, True)
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.patterns.rms_norm import per_channel


@rule("rsqrt", x=(2, 3, 8), w=(8,))
def rms_norm_offset(x: Tensor, w: Tensor, eps: float) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (h * (1.0 + w.to(torch.float32))).to(x.dtype)


@rms_norm_offset.becomes_where(per_channel)
def rule_rms_norm_offset(x: Any, w: Any, eps: Any) -> Any:
    return ops.rms_norm(x, w, eps, 1.0, True)
