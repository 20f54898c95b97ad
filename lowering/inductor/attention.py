"""Attention in a package for a GPU: ATen's memory-efficient kernel, asked for by name.

``scaled_dot_product_attention`` asks the device that is there for a kernel; without one it is spelled out, with all
scores in memory. Where that kernel takes the sizes and types it is asked for here, as ATen does on a GPU for calls with
a mask; what is left is spelled out on every machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

SDPA = torch.ops.aten.scaled_dot_product_attention.default
_ALIGNED = {torch.bfloat16: 8, torch.float16: 8, torch.float32: 4}
"""Channels of a head must be a multiple: 16 bytes."""


def name_kernels(graph: fx.Graph) -> None:
    """Change ``graph``: calls that the kernel takes go to it."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is SDPA and _takes([arg.meta["val"] for arg in node.args[:3]]):
            node.target = efficient


def _takes(operands: list[Tensor]) -> bool:
    return all(one.dim() == 4 and isinstance(one.shape[3], int) and one.shape[3] % _ALIGNED.get(one.dtype, 1 << 30) == 0
               for one in operands)  # fmt: skip


def efficient(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """``scaled_dot_product_attention`` of operands [batch, heads, tokens, channels], by that kernel."""
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(times, 1) for one in (key, value))
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.full_like(bias, float("-inf"), dtype=query.dtype).masked_fill(bias, 0.0)
        # the kernel loads 16 values of a row at once
        bias = torch.narrow(pad(bias, (0, -bias.shape[-1] % 16)), -1, 0, bias.shape[-1])
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return kernel(query, key, value, bias, False, dropout_p, is_causal, scale=scale)[0]
