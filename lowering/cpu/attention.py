"""Attention on the CPU in bfloat16: keys and values are read once for all the query heads that share them."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.lowering import Provider
from qpass.lowering.cpu import build, kernels

_MASKS = (torch.bool, torch.float32, torch.bfloat16)


def _refuses(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False, scale: float | None = None
) -> str | None:
    if {q.dtype, k.dtype, v.dtype} != {torch.bfloat16}:
        return f"cpu.attention takes bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    if mask is not None and mask.dtype not in _MASKS:
        return f"cpu.attention takes no mask of {str(mask.dtype).removeprefix('torch.')}"
    if build.has_amx():
        return "on AMX, ATen's uses the tiles and cpu.attention does not"
    return kernels.available()


def _call(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False, scale: float | None = None
) -> Tensor:
    kernels.load()
    return torch.ops.qpass_cpu.attention(q, k, v, mask, causal, q.shape[-1] ** -0.5 if scale is None else scale)


ATTENTION = Provider(
    "cpu.attention",
    "keys and values are read once for all query heads that share them; weights of the softmax are rounded to bfloat16",
    _refuses,
    _call,
)
