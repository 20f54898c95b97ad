"""RMSNorm written out, rounded before the weight.

    y = w · (x32 · rsqrt(mean(x32², -1) + eps)).to(x.dtype)

before   %to = to(x, f32); %pow = pow(%to, 2) ... %norm = mul(norm.weight, %to_2)        8 lines
after    %norm = qpass.rms_norm(x, norm.weight, eps)                                     1 line
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule


@rule("rsqrt", x=(2, 3, 8), w=(8,))
def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return w * h.to(x.dtype)


def _promoted(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """T5: the input meets the float32 factor as it is, and type promotion makes the product float32."""
    h = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + eps)
    return w * h.to(x.dtype)


def per_channel(bound: Mapping[str, Any]) -> str | None:
    """A norm's weight is a vector; a product with anything else is not a norm's scale."""
    rank = bound["w"].meta["val"].ndim
    return None if rank == 1 else f"the weight {bound['w'].meta['name']} has {rank} dimensions, not one"


@rms_norm.or_spelled(_promoted).becomes_where(per_channel)
def rule_rms_norm(x: Any, w: Any, eps: Any) -> Any:
    return ops.rms_norm(x, w, eps)
