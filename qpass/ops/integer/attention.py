"""Keys and values into the cache, and attention over it."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.numerics.integer import attention, cache
from qpass.numerics.integer.literal import attention as literal
from qpass.numerics.integer.paper import attention as paper
from qpass.ops.dialect import define
from qpass.ops.integer.modes import form

_ATTENTION = {"precise": attention.attention, "paper": paper.attention, "literal": literal.attention}


@define("integer_pack(Tensor x, Tensor k, int bits) -> Tensor")
def integer_pack(x: Tensor, k: Tensor, bits: int) -> Tensor:
    """Rows as they lie in the cache, int8 [..., D + 2]: codes, mantissa, exponent. x: int32 [..., D], k [..., 1]."""
    return cache.pack(x, k, bits)


@define(
    "integer_attention(Tensor q, Tensor m, Tensor k, Tensor keys, Tensor values, Tensor? keep, bool causal,"
    " Tensor table, int scale_mantissa, int scale_exponent, int bits, int clip, str mode='precise') -> (Tensor, Tensor)"
)
def integer_attention(
    q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, causal: bool, table: Tensor,
    scale_mantissa: int, scale_exponent: int, bits: int, clip: int, mode: str = "precise",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of softmax(scale · q kᵀ) v, one a token and head.

    Args:
        q, m, k: symmetric codes int8 [B, Hq, T, D], int32 [B, Hq, T, 1] twice.
        keys, values: int8 [B, H, S, D + 2], what ``integer_pack`` gives; Hq a multiple of H.
        keep: bool [B, 1, T, S], False is masked; None for no mask.
        causal: mask what is after the query.
        table: int32 [33], of 2^-z.
        scale_mantissa, scale_exponent: dyadic of log2(e) · scale; of scale in mode ``literal``.
        bits: of the codes.
        clip: Q15 distance below the maximum, in the unit of the scale, from which on a weight is 0 (``precise``)
            or that of the clip; 0 for none.
    """
    if keep is None:
        keep = torch.ones(1, 1, q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device)
    if causal:
        keep = keep & torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool, device=q.device).tril()
    return form(_ATTENTION, mode)(q, m, k, keys, values, keep, table, scale_mantissa, scale_exponent, bits, clip)
