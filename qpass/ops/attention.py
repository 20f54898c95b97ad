"""Attention with grouped queries, and the key/value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.ops.dialect import define


@define("attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal=False, float? scale=None) -> Tensor")
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """y = softmax(scale · q kᵀ + mask) v; each key/value head serves H_q / H_kv consecutive query heads.

    Args:
        q: [B, H_q, T, D]; k, v: [B, H_kv, S, D]; H_q a multiple of H_kv.
        mask: bool (True is kept) or additive float, broadcast to [B, H_q, T, S]; None for none.
        causal: mask out keys after the query.
        scale: 1 / sqrt(D) when None.
    """
    repeats = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, _repeat(k, repeats), _repeat(v, repeats), attn_mask=mask, is_causal=causal, scale=scale
    )


@define("eager_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale, float softcap=0.0) -> Tensor")
def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float = 0.0
) -> Tensor:
    """As ``attention``, but in separate steps that round to the dtype of q, and with an optional cap on the scores.

    s = scale · q kᵀ;  s = cap · tanh(s / cap);  y = softmax(s + mask) v, the softmax in float32.

    Args:
        q: [B, H_q, T, D]; k, v: [B, H_kv, S, D]; H_q a multiple of H_kv.
        mask: additive float, broadcast to [B, H_q, T, S]; None for none.
        scale: factor on the scores.
        softcap: bound on the size of the scores; 0 for none.
    """
    repeats = q.shape[1] // k.shape[1]
    scores = torch.matmul(q, _repeat(k, repeats).transpose(2, 3)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    return torch.matmul(weights, _repeat(v, repeats))


def _repeat(x: Tensor, repeats: int) -> Tensor:
    if repeats == 1:
        return x
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, repeats, length, width).reshape(batch, heads * repeats, length, width)


@define("cache_update(Tensor past, Tensor new) -> Tensor")
def cache_update(past: Tensor, new: Tensor) -> Tensor:
    """The key or value cache after this call. past: [B, H, P, D]; new: [B, H, T, D]; result [B, H, P + T, D]."""
    return torch.cat((past, new), dim=-2)
