"""Attention with grouped queries, and the key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import AttentionScheme, Format
from qpass.numerics import codec
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


@define(
    "attention_weights(Tensor q, Tensor k, Tensor? mask, bool causal=False, float? scale=None, float softcap=0.0)"
    " -> Tensor"
)
def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool = False, scale: float | None = None, softcap: float = 0.0
) -> Tensor:
    """p = softmax(scale · q kᵀ + mask) [B, H_q, T, S], in at least float32, rounded once to the dtype of q.

    Where an attention's p has a format, this and ``attention_output`` stand for it. A query that may see no key gives
    0 to all. Arguments as in ``attention`` and ``eager_attention``.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.to(wide), _repeat(k, q.shape[1] // k.shape[1]).to(wide).transpose(-2, -1))
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if causal:
        keys, queries = (torch.arange(length, device=q.device) for length in (k.shape[-2], q.shape[-2]))
        scores = torch.where(keys <= queries[:, None], scores, float("-inf"))
    if mask is not None:
        scores = torch.where(mask, scores, float("-inf")) if mask.dtype is torch.bool else scores + mask
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.where(blind, 0.0, F.softmax(scores, dim=-1)).to(q.dtype)


@define("attention_output(Tensor p, Tensor v) -> Tensor")
def attention_output(p: Tensor, v: Tensor) -> Tensor:
    """y = p v [B, H_q, T, D]. p: [B, H_q, T, S]; v: [B, H_kv, S, D], heads shared as in ``attention``."""
    return torch.matmul(p, _repeat(v, p.shape[1] // v.shape[1]))


ATTENTIONS = (attention, eager_attention)
"""The ops that a recipe may give an ``AttentionScheme``."""

SPARE = (0, 1)
"""A 0 behind a row of p: no range changes, and no primitive meets a row of one value."""


def weights_arguments(op: Any, args: Sequence[Any]) -> tuple[Any, ...]:
    """What ``attention_weights`` takes behind q and k, from the arguments of one of ``ATTENTIONS``."""
    mask, rest = args[3], list(args[4:])
    if op is eager_attention:
        scale, softcap = (*rest, 0.0)[:2]
        return (mask, False, scale, softcap)
    causal, scale = (*rest, *(False, None)[len(rest) :])
    return (mask, causal, scale, 0.0)


def attend(
    op: Any, args: Sequence[Any], scheme: AttentionScheme | None,
    rounded: Callable[[Tensor, Format], Tensor] = codec.round_rows,
) -> Tensor:  # fmt: skip
    """One of ``ATTENTIONS`` on operands that are quantized and dequantized: what a QUANTISED graph spells.

    Args:
        args: those of ``op``.
        scheme: None for no format.
        rounded: gives x̂ of x [..., K]; another one where gradients flow through it.
    """
    if scheme is None:
        return op(*args)  # type: ignore[no-any-return]
    q, k, v = (x if fmt is None else rounded(x, fmt) for x, fmt in zip(args, (scheme.q, scheme.k, scheme.v)))
    if scheme.p is None:
        return op(q, k, v, *args[3:])  # type: ignore[no-any-return]
    p = F.pad(attention_weights(q, k, *weights_arguments(op, args)), SPARE)
    return attention_output(rounded(p, scheme.p)[..., :-1], v)  # type: ignore[no-any-return]


def _repeat(x: Tensor, repeats: int) -> Tensor:
    if repeats == 1:
        return x
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, repeats, length, width).reshape(batch, heads * repeats, length, width)


@define("cache_update(Tensor past, Tensor new) -> Tensor")
def cache_update(past: Tensor, new: Tensor) -> Tensor:
    """The key or value cache after this call. past: [B, H, P, D]; new: [B, H, T, D]; result [B, H, P + T, D]."""
    return torch.cat((past, new), dim=-2)
