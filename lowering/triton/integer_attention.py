"""Attention over int8 codes with one dyadic scale a key and a value, in integers, bit for bit its meaning.

Row by row, over the keys that the row may see (``qpass.numerics.integer.attention``):

    1. the least exponent of keys, and of values
    2. the greatest score,  A = RSH(q · k · m_k, k_k - least - up)
    3. e = 2^-(max - A) c;  e' = RSH(e · m_v, 8 + k_v - least');  sum e, sum e', sum e' v
    4. y = RSH(sum e' v, drop) / sum e

A maximum that grows on the way would round e anew, and the result would depend on how the keys are cut; so scores are
computed twice. e' has 15 bits and meets the values as two int8: -e' = 256 · high + low with both from -128 to 127,
which 0 to 32640 always has. All sums are exact, whatever their order.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import (
    exp2_negative,
    msb,
    msb_wide,
    mul_shift,
    rsh,
    rsh_right,
    rsh_wide,
    to_q15,
)

NONE = tl.constexpr(127)
LEAST = tl.constexpr(-(1 << 30))


@triton.jit
def _scale(cache, s, half, S, WIDTH: tl.constexpr):
    """(mantissa, exponent) of keys or values s, int32; 0 and 127 beyond the last."""
    at = cache + s.to(tl.int64) * (2 * half) + WIDTH
    return tl.load(at, s < S, -192).to(tl.int32) + 192, tl.load(at + 1, s < S, 127).to(tl.int32)


@triton.jit
def _codes(cache, s, half, S, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """int8 [keys, BLOCK]. A row of the cache begins at an even byte: two codes are the widest load."""
    d = tl.arange(0, BLOCK)
    there = (s < S)[:, None]
    if BLOCK != WIDTH:
        there = there & (d < WIDTH)[None, :]
    return tl.load(cache + s.to(tl.int64)[:, None] * (2 * half) + d[None, :], there, 0)


@triton.jit
def _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL: tl.constexpr, KEEP: tl.constexpr):
    """bool [rows, keys]: which keys a row may see."""
    seen = live[:, None] & (s < S)[None, :]
    if CAUSAL:
        seen &= s[None, :] <= token[:, None]
    if KEEP:
        spots = keep + token.to(tl.int64)[:, None] * keep_t + s[None, :] * keep_s
        seen &= tl.load(spots, seen, 0) != 0
    return seen


@triton.jit
def _scores(q_tile, keys, s, half, S, least, UP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A int32 [rows, keys]."""
    m, k = _scale(keys, s, half, S, WIDTH)
    wide = tl.dot(q_tile, tl.trans(_codes(keys, s, half, S, WIDTH, BLOCK)), out_dtype=tl.int32) * m[None, :]
    # a key that a row may not see can have a lower exponent: its score is never read
    return rsh(wide, tl.maximum(k[None, :] - least[:, None] - UP, -UP))


@triton.jit
def integer_attention_kernel(
    q, m, k, keys, values, keep, table, out, out_k, HEADS, T, S, key_b, key_h, key_t, value_b, value_h, value_t,
    keep_b, keep_t, keep_s, scale_mantissa, scale_exponent,
    D: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, UP: tl.constexpr, CLIP: tl.constexpr, CAUSAL: tl.constexpr,
    KEEP: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """q int8 [., HEADS · G, T, D], m, k int32 [., HEADS · G, T]; keys, values int8 [., HEADS, S, D + 2] and DV + 2;
    keep bool [., T, S]; table int32 [33]; out int32 [., T, HEADS · G, DV], out_k [., T, HEADS · G]. Strides of keys and
    values in units of two bytes.

    A row is a token and one of the G query heads of a key head, S below 2^17. Grid: T · G / BM, batch · HEADS.
    """
    tile, batch, head = tl.program_id(0), tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    row = tile * BM + tl.arange(0, BM)
    token, query = row // G, head * G + row % G
    live = token < T
    far = tl.cast(batch, tl.int64)
    source = (far * (HEADS * G) + query) * T + token
    d = tl.arange(0, BD)
    q_tile = tl.load(q + source[:, None] * D + d[None, :], live[:, None] & (d < D)[None, :], 0)
    keys += 2 * (far * key_b + tl.cast(head, tl.int64) * key_h)
    values += 2 * (far * value_b + tl.cast(head, tl.int64) * value_h)
    keep += far * keep_b
    last = S
    if CAUSAL:
        last = tl.minimum(S, (tile * BM + BM - 1) // G + 1)

    least_k, least_v = tl.full((BM,), NONE, tl.int32), tl.full((BM,), NONE, tl.int32)
    for first in tl.range(0, last, BS, num_stages=1):
        s = first + tl.arange(0, BS)
        seen = _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL, KEEP)
        _, key_k = _scale(keys, s, key_t, S, D)
        _, value_k = _scale(values, s, value_t, S, DV)
        least_k = tl.minimum(least_k, tl.min(tl.where(seen, key_k[None, :], NONE), 1))
        least_v = tl.minimum(least_v, tl.min(tl.where(seen, value_k[None, :], NONE), 1))

    top = tl.full((BM,), LEAST, tl.int32)
    for first in tl.range(0, last, BS, num_stages=1):
        s = first + tl.arange(0, BS)
        seen = _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL, KEEP)
        a = _scores(q_tile, keys, s, key_t, S, least_k, UP, D, BD)
        top = tl.maximum(top, tl.max(tl.where(seen, a, LEAST), 1))

    product = tl.load(m + source, live, 1) * scale_mantissa
    drop = msb(product) - 14
    factor = rsh(product, drop)
    places = tl.load(k + source, live, 0) + scale_exponent - drop + least_k + UP - 30

    v = tl.arange(0, BV)
    high, low = tl.zeros((BM, BV), tl.int32), tl.zeros((BM, BV), tl.int32)
    total, folded_sum = tl.zeros((BM,), tl.int64), tl.zeros((BM,), tl.int64)
    for first in tl.range(0, last, BS, num_stages=1):
        s = first + tl.arange(0, BS)
        seen = _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL, KEEP)
        a = _scores(q_tile, keys, s, key_t, S, least_k, UP, D, BD)
        z = to_q15(mul_shift(tl.maximum(top[:, None] - a, 0), factor[:, None]), places[:, None])
        if CLIP:
            seen &= z < CLIP
        e = tl.where(seen, exp2_negative(z, table, seen), 0)
        value_m, value_k = _scale(values, s, value_t, S, DV)
        folded = rsh_right(e * value_m[None, :], tl.maximum(8 + value_k[None, :] - least_v[:, None], 0))
        total += tl.sum(e, 1).to(tl.int64)
        folded_sum += tl.sum(folded, 1).to(tl.int64)
        low_part = (-folded << 24) >> 24
        high_part = (-folded - low_part) >> 8
        v_tile = _codes(values, s, value_t, S, DV, BV)
        high = tl.dot(high_part.to(tl.int8), v_tile, high, out_dtype=tl.int32)
        low = tl.dot(low_part.to(tl.int8), v_tile, low, out_dtype=tl.int32)

    total = tl.maximum(total, 1)
    up = msb_wide(total) - 15
    n = rsh_wide(total, up)
    inverse = (((1 << 30) + (n >> 1)) // n).to(tl.int32)
    narrow = tl.maximum(msb_wide(folded_sum) + 8 - 29, 0)
    sums = -((high.to(tl.int64) << 8) + low.to(tl.int64))
    result = mul_shift(rsh_wide(sums, narrow[:, None]).to(tl.int32), inverse[:, None])
    place = (far * T + token) * (HEADS * G) + query
    tl.store(out + place[:, None] * DV + v[None, :], result, live[:, None] & (v < DV)[None, :])
    tl.store(out_k + place, least_v + (up + 7 - narrow).to(tl.int32), live)
