"""RMSNorm rounded once, after the weight, as in ``torch.nn.RMSNorm``.

    y = (w32 · x32 · rsqrt(mean(x32², -1) + eps)).to(x.dtype)

before   ... %mul = mul(norm.weight, %h); %norm = to(%mul, bf16)
after    %norm = qpass.rms_norm(x, norm.weight, eps, 0.0, True)
Exact: the op's meaning is this same expression; ``aten.rms_norm`` is defined by it, but a GPU's fused kernel for it may
round another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.patterns.rms_norm import per_channel


def _normed(x: Tensor, eps: float) -> Tensor:
    h = x.to(torch.float32)
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)


@rule("rsqrt", x=(2, 3, 97), w=(97,))
def rms_norm_late(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return (w * _normed(x, eps)).to(x.dtype)


def _cast(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return (w.to(torch.float32) * _normed(x, eps)).to(x.dtype)


def _rounds(bound: Mapping[str, Any]) -> str | None:
    if bound["x"].meta["val"].dtype is torch.float32:
        return "x is float32: there is no rounding to be late"
    return per_channel(bound)


@rms_norm_late.or_spelled(_cast).becomes_where(_rounds)
def rule_rms_norm_late(x: Any, w: Any, eps: Any) -> Any:
    return ops.rms_norm(x, w, eps, 0.0, True)


@rule("rms_norm", x=(2, 3, 97), w=(97,), sizes={"width": 97})
def rms_norm_aten(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (97,), w, eps)


@rms_norm_aten.becomes
def rule_rms_norm_aten(x: Any, w: Any, eps: Any, width: Any) -> Any:
    return ops.rms_norm(x, w, eps, 0.0, True)
