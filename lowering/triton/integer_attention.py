"""Attention over int8 codes with one dyadic scale a key and a value, in integers, bit for bit its meaning.

Row by row, over the keys that the row may see (``qpass.numerics.integer.attention``):

    1. the least exponent of keys, and of values; the greatest score,  A = RSH(q · k · m_k, k_k - least - up)
    2. e = 2^-(max - A) c;  e' = RSH(e · m_v, 8 + k_v - least');  sum e, sum e', sum e' v
    3. y = RSH(sum e' v, drop) / sum e

Scores depend on the least exponent, which is known behind the last key only, but their maximum can go with it: with
B = floor(q · k · m_k · 2^(1 - n)), n the shift of A, A is (B + 1) >> 1, which grows with B; and B at an exponent that
is d lower is B >> d, as floors of floors are floors. So the greatest B is kept, and moves when the exponent does. It
has the same bits in every order of keys, and in parts of them. Weights are not so: a maximum that grows on the way
would round e anew. Scores are therefore computed twice.

e' has 15 bits and meets the values as two int8: -e' = 256 · high + low with both from -128 to 127, which 0 to 32640
always has. All sums are exact, whatever their order.
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
"""Below every B: codes of queries and keys are symmetric, so |B| is less than 2^30."""


@triton.jit
def _scale(cache, s, step, S, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    """(mantissa, exponent) of keys or values s, int32, by one load of two bytes; exponent 127 beyond the last."""
    at = (cache + s.to(tl.int64) * (UNIT * step) + WIDTH).to(tl.pointer_type(tl.int16))
    pair = tl.load(at, s < S, 127 << 8).to(tl.int32)
    return ((pair << 24) >> 24) + 192, pair >> 8


@triton.jit
def _codes(cache, s, step, S, UNIT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """int8 [keys, BLOCK]. Rows of the cache begin at multiples of UNIT bytes: the widest load of codes."""
    d = tl.arange(0, BLOCK)
    there = (s < S)[:, None]
    if BLOCK != WIDTH:
        there = there & (d < WIDTH)[None, :]
    return tl.load(cache + s.to(tl.int64)[:, None] * (UNIT * step) + d[None, :], there, 0)


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
def _products(q_tile, keys, s, step, S, UNIT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(q · k · m int32 [rows, keys], exponents int32 [keys])."""
    m, k = _scale(keys, s, step, S, UNIT, WIDTH)
    return tl.dot(q_tile, tl.trans(_codes(keys, s, step, S, UNIT, WIDTH, BLOCK)), out_dtype=tl.int32) * m[None, :], k


@triton.jit
def coarser(top, by):
    """The greatest B at an exponent that is ``by`` lower."""
    return tl.where(top == LEAST, LEAST, top >> tl.minimum(by, 31))


@triton.jit
def look(
    q_tile, keys, values, keep, token, live, first, last, S, key_t, value_t, keep_t, keep_s,
    D: tl.constexpr, DV: tl.constexpr, UP: tl.constexpr, CAUSAL: tl.constexpr, KEEP: tl.constexpr, UNIT: tl.constexpr,
    BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of the keys from ``first`` to ``last`` that a row may see, int32 [rows]: the least exponent of keys, the greatest
    B at it, and the least exponent of values."""
    least, least_v = tl.full((BM,), NONE, tl.int32), tl.full((BM,), NONE, tl.int32)
    top = tl.full((BM,), LEAST, tl.int32)
    for start in tl.range(first, last, BS, num_stages=1):
        s = start + tl.arange(0, BS)
        seen = _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL, KEEP)
        _, value_k = _scale(values, s, value_t, S, UNIT, DV)
        least_v = tl.minimum(least_v, tl.min(tl.where(seen, value_k[None, :], NONE), 1))
        wide, k = _products(q_tile, keys, s, key_t, S, UNIT, D, BD)
        now = tl.minimum(least, tl.min(tl.where(seen, k[None, :], NONE), 1))
        # a key that a row may not see can have a lower exponent: its score is never read
        n = tl.maximum(k[None, :] - now[:, None] - UP, -UP)
        b = (wide >> tl.minimum(tl.maximum(n - 1, 0), 31)) << tl.maximum(1 - n, 0)
        top = tl.maximum(coarser(top, least - now), tl.max(tl.where(seen, b, LEAST), 1))
        least = now
    return least, top, least_v


@triton.jit
def row_factor(m, k, source, live, least, scale_mantissa, scale_exponent, UP: tl.constexpr):
    """(15 bits of a row's mantissa times the scale's, how far a distance times it is shifted to Q15)."""
    product = tl.load(m + source, live, 1) * scale_mantissa
    drop = msb(product) - 14
    return rsh(product, drop), tl.load(k + source, live, 0) + scale_exponent - drop + least + UP - 30


@triton.jit
def _weigh(folded, v_tile, high, low):
    """Sums with -folded · values added: its bytes are signed, ``high`` counts 256."""
    low_part = (-folded << 24) >> 24
    high_part = (-folded - low_part) >> 8
    high = tl.dot(high_part.to(tl.int8), v_tile, high, out_dtype=tl.int32)
    return high, tl.dot(low_part.to(tl.int8), v_tile, low, out_dtype=tl.int32)


@triton.jit
def weighed(
    q_tile, keys, values, keep, table, token, live, least, top, least_v, factor, places, first, last, S, key_t,
    value_t, keep_t, keep_s,
    D: tl.constexpr, DV: tl.constexpr, UP: tl.constexpr, CLIP: tl.constexpr, CAUSAL: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Sums over the keys from ``first`` to ``last``: of -e' v, in 256 and in 1, int32 [rows, BV]; of e and of e', int64
    [rows]. least, top, least_v: of all keys."""
    most = (top + 1) >> 1
    high, low = tl.zeros((BM, BV), tl.int32), tl.zeros((BM, BV), tl.int32)
    total, folded_sum = tl.zeros((BM,), tl.int64), tl.zeros((BM,), tl.int64)
    for start in tl.range(first, last, BS, num_stages=1):
        s = start + tl.arange(0, BS)
        seen = _seen(keep, token, live, s, S, keep_t, keep_s, CAUSAL, KEEP)
        wide, k = _products(q_tile, keys, s, key_t, S, UNIT, D, BD)
        a = rsh(wide, tl.maximum(k[None, :] - least[:, None] - UP, -UP))
        z = to_q15(mul_shift(tl.maximum(most[:, None] - a, 0), factor[:, None]), places[:, None])
        if CLIP:
            seen &= z < CLIP
        e = tl.where(seen, exp2_negative(z, table, seen), 0)
        value_m, value_k = _scale(values, s, value_t, S, UNIT, DV)
        folded = rsh_right(e * value_m[None, :], tl.maximum(8 + value_k[None, :] - least_v[:, None], 0))
        total += tl.sum(e, 1).to(tl.int64)
        folded_sum += tl.sum(folded, 1).to(tl.int64)
        high, low = _weigh(folded, _codes(values, s, value_t, S, UNIT, DV, BV), high, low)
    return high, low, total, folded_sum


@triton.jit
def divided(high, low, total, folded_sum):
    """(x int32 [rows, BV], what its exponent is above that of the values): sums by the sum of the numerators."""
    total = tl.maximum(total, 1)
    up = msb_wide(total) - 15
    n = rsh_wide(total, up)
    inverse = (((1 << 30) + (n >> 1)) // n).to(tl.int32)
    narrow = tl.maximum(msb_wide(folded_sum) + 8 - 29, 0)
    sums = -((high.to(tl.int64) << 8) + low.to(tl.int64))
    return mul_shift(rsh_wide(sums, narrow[:, None]).to(tl.int32), inverse[:, None]), (up + 7 - narrow).to(tl.int32)


@triton.jit
def rows_of(tile, batch, head, HEADS, T, G: tl.constexpr, BM: tl.constexpr):
    """(token, query head, whether it is there, where its query is) of each row of a tile."""
    row = tile * BM + tl.arange(0, BM)
    token, query = row // G, head * G + row % G
    return token, query, token < T, (batch.to(tl.int64) * (HEADS * G) + query) * T + token


@triton.jit
def query_codes(q, source, live, D: tl.constexpr, BD: tl.constexpr):
    """int8 [rows, BD]."""
    d = tl.arange(0, BD)
    return tl.load(q + source[:, None] * D + d[None, :], live[:, None] & (d < D)[None, :], 0)


@triton.jit
def end_of_keys(tile, S, CAUSAL: tl.constexpr, G: tl.constexpr, BM: tl.constexpr):
    """Behind the last key that a row of a tile may see."""
    return tl.minimum(S, (tile * BM + BM - 1) // G + 1) if CAUSAL else S


@triton.jit
def integer_attention_kernel(
    q, m, k, keys, values, keep, table, out, out_k, HEADS, T, S, key_b, key_h, key_t, value_b, value_h, value_t,
    keep_b, keep_t, keep_s, scale_mantissa, scale_exponent,
    D: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, UP: tl.constexpr, CLIP: tl.constexpr, CAUSAL: tl.constexpr,
    KEEP: tl.constexpr, UNIT: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """q int8 [., HEADS · G, T, D], m, k int32 [., HEADS · G, T]; keys, values int8 [., HEADS, S, D + 2] and DV + 2;
    keep bool [., T, S]; table int32 [33]; out int32 [., T, HEADS · G, DV], out_k [., T, HEADS · G]. Strides of keys and
    values in units of UNIT bytes.

    A row is a token and one of the G query heads of a key head, S below 2^17. Grid: T · G / BM, batch · HEADS.
    """
    tile, batch, head = tl.program_id(0), tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    token, query, live, source = rows_of(tile, batch, head, HEADS, T, G, BM)
    q_tile, far = query_codes(q, source, live, D, BD), batch.to(tl.int64)
    keys += UNIT * (far * key_b + head.to(tl.int64) * key_h)
    values += UNIT * (far * value_b + head.to(tl.int64) * value_h)
    keep += far * keep_b
    last = end_of_keys(tile, S, CAUSAL, G, BM)
    least, top, least_v = look(
        q_tile, keys, values, keep, token, live, 0, last, S, key_t, value_t, keep_t, keep_s,
        D, DV, UP, CAUSAL, KEEP, UNIT, BM, BS, BD)  # fmt: skip
    factor, places = row_factor(m, k, source, live, least, scale_mantissa, scale_exponent, UP)
    high, low, total, folded_sum = weighed(
        q_tile, keys, values, keep, table, token, live, least, top, least_v, factor, places, 0, last, S, key_t,
        value_t, keep_t, keep_s, D, DV, UP, CLIP, CAUSAL, KEEP, UNIT, BM, BS, BD, BV)  # fmt: skip
    result, above = divided(high, low, total, folded_sum)
    place, v = (far * T + token) * (HEADS * G) + query, tl.arange(0, BV)
    tl.store(out + place[:, None] * DV + v[None, :], result, live[:, None] & (v < DV)[None, :])
    tl.store(out_k + place, least_v + above, live)
