"""Attention over a cache of codes with one scale per token and head, on the key side and on the value side.

    S = q8 · k8;   A_ij = RSH(S_ij · mk_j, kk_j - ref_i);   e = 2^-(max A - A) c_i
    e'_j = RSH(e_j · mv_j, 8 + kv_j - ref'_i);   O = sum e'_j v8_j;   y = O / sum e

ref_i is the least exponent among the keys that row i may see, so a row depends on nothing that it does not see: not on
later tokens, nor on its neighbors in the batch, nor on how a prompt was cut.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.numerics.integer.cache import EXTRA, unpack
from qpass.numerics.integer.marks import case, helper
from qpass.numerics.integer.shift import msb, mul_shift, rsh
from qpass.numerics.integer.softmax import softmax_numerators

_NONE = 127
Weights = tuple[Tensor, Tensor | None]
"""Weights of the values, int32 [..., S], 0 to 2^15, and what they add up to, int64 [..., 1]; None: their own sum."""


def score_room(width: int, bits: int) -> int:
    """Left shift (negative: right) that brings S · mk of ``width`` channels to within 2^29.

    Raises:
        UnsupportedError: S · mk could leave int32.
    """
    bound = width * ((1 << (bits - 1)) - 1) ** 2 * 255
    if bound >= 1 << 31:
        raise UnsupportedError(f"a head of {width} channels in {bits} bits", fix="at most 522 channels fit 8 bits")
    return 29 - (bound - 1).bit_length()


def _least(k: Tensor, keep: Tensor) -> Tensor:
    """The least exponent that each row may see. k: [B, H, 1, 1, S]; keep: [B, 1, 1, T, S] -> [B, H, 1, T, 1]."""
    return torch.where(keep, k, torch.full_like(k, _NONE)).amin(-1, keepdim=True)


def scores(q: Tensor, keys: Tensor, m: Tensor, k: Tensor, keep: Tensor, up: int) -> tuple[Tensor, Tensor]:
    """A int32 [B, H, G, T, S] with |A| <= 2^29, and its exponent [B, H, 1, T, 1].

    Args:
        q: int8 [B, H, G, T, D], G query heads a key head.
        keys, m, k: int32 [B, H, S, D], [B, H, S, 1] twice.
        keep: bool [B, 1, 1, T, S].
        up: ``score_room``.
    """
    batch, heads, group, rows, width = q.shape
    flat = q.to(torch.int32).reshape(batch, heads, group * rows, width)
    dots = torch.matmul(flat, keys.transpose(-1, -2)).reshape(batch, heads, group, rows, keys.shape[2])
    m, k = (part.reshape(batch, heads, 1, 1, -1) for part in (m, k))
    least = _least(k, keep)
    # a key that a row may not see can have a lower exponent: its score is never read, and must not wrap either
    return rsh(dots * m, (k - least - up).clamp(min=-up)), least + up


@helper
def weighted_values(
    e: Tensor, values: Tensor, m: Tensor, k: Tensor, keep: Tensor, total: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sum_j p_j v_j with p = e / total: rows [B, H, G, T, D] and [B, H, G, T, 1].

    Args:
        e: int32 [B, H, G, T, S], 0 to 2^15.
        values, m, k: int32 [B, H, S, D], [B, H, S, 1] twice.
        total: int64 [B, H, G, T, 1]; None: the sum of e.
    """
    batch, heads, group, rows, length = e.shape
    m, k = (part.reshape(batch, heads, 1, 1, -1) for part in (m, k))
    least = _least(k, keep)
    folded = rsh(e * m, (8 + k - least).clamp(min=0))  # 15 bits: one int8 product each for its high and its low byte
    flat = folded.reshape(batch, heads, group * rows, length).to(torch.int64)
    inverse, places = _inverse((e.sum(-1, keepdim=True, dtype=torch.int64) if total is None else total).clamp(min=1))
    drop = (case(msb(flat.sum(-1, keepdim=True))) + 8 - 29).clamp(min=0)  # |sums| <= 128 · what it is the top bit of
    narrow = rsh(torch.matmul(flat, values.to(torch.int64)), drop).to(torch.int32)
    x = mul_shift(narrow.reshape(batch, heads, group, rows, values.shape[-1]), inverse)
    return x, least + places + (7 - drop).to(torch.int32).reshape(batch, heads, group, rows, 1)


@helper
def _inverse(total: Tensor) -> tuple[Tensor, Tensor]:
    """(2^30 / n, places), int32, of total = n · 2^places with n of 16 bits. total: int64 >= 1."""
    places = case(msb(total)) - 15
    n = rsh(total, places)
    return (((1 << 30) + (n >> 1)) // n).to(torch.int32), places.to(torch.int32)


@helper
def _row_scale(m: Tensor, k: Tensor, scale_mantissa: int, scale_exponent: int) -> tuple[Tensor, Tensor]:
    """(mantissa, exponent) of log2(e) · scale · m · 2^-k. m of 15 bits, the mantissa of the scale too."""
    product = m * scale_mantissa
    drop = case(msb(product)) - 14
    return rsh(product, drop), k + scale_exponent - drop


def attend(
    weigh: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Weights], q: Tensor, m: Tensor, k: Tensor,
    keys: Tensor, values: Tensor, keep: Tensor, table: Tensor, scale_mantissa: int, scale_exponent: int, bits: int = 8,
    clip: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``attention`` with weights by ``weigh(scores, keep, c_mantissa, c_exponent, table, clip)``."""
    batch, heads, rows, width = q.shape
    group = heads // keys.shape[1]
    shape = (batch, keys.shape[1], group, rows)
    keep = keep[:, :, None]
    k_codes, k_m, k_k = unpack(keys)
    v_codes, v_m, v_k = unpack(values)
    a, a_exponent = scores(q.reshape(*shape, width), k_codes, k_m, k_k, keep, score_room(width, bits))
    c, c_exponent = _row_scale(m.reshape(*shape, 1), k.reshape(*shape, 1), scale_mantissa, scale_exponent)
    e, total = weigh(a, keep, c, c_exponent + a_exponent, table, clip)
    x, exponent = weighted_values(e, v_codes, v_m, v_k, keep, total)
    return x.reshape(batch, heads, rows, values.shape[-1] - EXTRA), exponent.reshape(batch, heads, rows, 1)


def _unnormalized(
    a: Tensor, keep: Tensor, c_mantissa: Tensor, c_exponent: Tensor, table: Tensor, clip: int
) -> Weights:
    return softmax_numerators(a, keep, c_mantissa, c_exponent, table, clip), None


def attention(
    q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, keep: Tensor, table: Tensor, scale_mantissa: int,
    scale_exponent: int, bits: int = 8, clip: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(scale · q kᵀ) v: rows (x int32 [B, Hq, T, D], k int32 [B, Hq, T, 1]).

    Args:
        q, m, k: codes int8 [B, Hq, T, D] and int32 [B, Hq, T, 1].
        keys, values: caches int8 [B, H, S, D + 2]; Hq a multiple of H.
        keep: bool [B, 1, T, S] (or [1, 1, T, S]); False is masked. A row masked whole gives 0.
        table: ``exp2.TABLE``.
        scale_mantissa, scale_exponent: ``fit`` of log2(e) · scale, 15 bits.
        bits: of q's and the keys' codes.
        clip: see ``softmax_numerators``.
    """
    return attend(_unnormalized, q, m, k, keys, values, keep, table, scale_mantissa, scale_exponent, bits, clip)
