"""Attention of float queries over keys and values that lie in a cache as rows of codes, each byte read once.

A row of the cache is codes and one scale (and zero point) a token, or one for each group of channels
(``qpass.numerics.kv_rows``). With c the codes as floats, exact in 16 bits, and one scale a token:

    score(t, s) = scale · s_k ((q · c_k) - z_k (q · 1))       dots of raw codes, the rest in float32: no key is rounded
    w = round(p · s_v)                                        to the dtype of q, which the dot wants
    y(t) = (Σ_s w c_v - Σ_s w z_v) / Σ_s p                    the same rounded w in both sums

p = exp(score - the greatest so far); what is summed is scaled anew when that grows. So a weight is off by u = 2^-8 of
itself (2^-11 in float16, 2^-24 in float32), and beside the rounding of sums in float32

    |y - exact| <= u Σ_s P |v̂|,   P the softmax, v̂ = (c_v - z_v) s_v

In float16 s_v is divided by the greatest so far, lest weights fall below its range. Groups of channels leave no scale
to a column: their keys and values are made as ``unpack`` makes them, rounded to the dtype of q, and w is p.

A program has BM rows (tokens times the query heads of a key head). Where rows are few, keys are cut into SPLITS ranges;
each leaves its maximum, sum and product, and ``kv_combine_kernel`` adds them in their order.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.kv_codes import byte_values, half_values

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _codes(cache, s, step, S, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """int8 [keys, BLOCK]. Rows begin at multiples of 16 bytes; ``step`` of these lie between two."""
    d = tl.arange(0, BLOCK)
    there = (s < S)[:, None]
    if BLOCK != BYTES:
        there = there & (d < BYTES)[None, :]
    return tl.load(cache + s.to(tl.int64)[:, None] * (step * 16) + d[None, :], there, 0)


@triton.jit
def _numbers(cache, s, step, S, KIND: tl.constexpr, BYTES: tl.constexpr, ZERO: tl.constexpr):
    """(scale, zero point) float32 [keys] of rows with one each; 0 beyond the last. Bytes are 128 less than codes."""
    at = cache + s.to(tl.int64) * (step * 16) + (BYTES + 3) // 4 * 4
    scale = tl.load(at.to(tl.pointer_type(tl.float32)), s < S, 0.0)
    zero = scale * 0
    if ZERO:
        point = tl.load((at + 4).to(tl.pointer_type(tl.int32)), s < S, 0)
        zero = (point - (128 if KIND == "int8" else 0)).to(tl.float32)
    return scale, zero


@triton.jit
def _in_groups(
    values, cache, s, step, S, KIND: tl.constexpr, BYTES: tl.constexpr, EACH: tl.constexpr, ZERO: tl.constexpr,
    BLOCK: tl.constexpr, BS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(code - zero) · scale, [keys, BLOCK] of ``DTYPE``, where EACH bytes share a scale."""
    GROUPS: tl.constexpr = (BYTES + EACH - 1) // EACH
    COUNT: tl.constexpr = BLOCK // EACH
    g = tl.arange(0, COUNT)
    there = (s < S)[:, None] & (g < GROUPS)[None, :]
    at = cache + s.to(tl.int64)[:, None] * (step * 16) + (BYTES + 3) // 4 * 4 + 4 * g[None, :]
    scale = tl.load(at.to(tl.pointer_type(tl.float32)), there, 0.0)
    cut = tl.reshape(values.to(tl.float32), (BS, COUNT, EACH))
    if ZERO:
        point = tl.load((at + 4 * GROUPS).to(tl.pointer_type(tl.int32)), there, 0)
        cut -= (point - (128 if KIND == "int8" else 0)).to(tl.float32)[:, :, None]
    return tl.reshape(cut * scale[:, :, None], (BS, BLOCK)).to(DTYPE)


@triton.jit
def _tiles(
    codes, cache, s, step, S, KIND: tl.constexpr, BYTES: tl.constexpr, EACH: tl.constexpr, ZERO: tl.constexpr,
    BLOCK: tl.constexpr, BS: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """(low halves, high halves), [keys, BLOCK] of ``DTYPE``; of codes of a byte, these, twice. Values, if in groups."""
    HALF: tl.constexpr = KIND != "int8" and KIND != "e4m3" and KIND != "e5m2"
    if HALF:
        low, high = half_values(codes, KIND, DTYPE, ASM)
    else:
        low = byte_values(codes, KIND, DTYPE, ASM)
        high = low
    if EACH and HALF:
        high = _in_groups(high, cache, s, step, S, KIND, BYTES, EACH, ZERO, BLOCK, BS, DTYPE)
    if EACH:
        low = _in_groups(low, cache, s, step, S, KIND, BYTES, EACH, ZERO, BLOCK, BS, DTYPE)
    if EACH and not HALF:
        high = low
    return low, high


@triton.jit
def _seen(mask, places, token, live, s, S, CAUSAL: tl.constexpr, MASK: tl.constexpr):
    """(bool [rows, keys] which keys a row may see, where its mask lies)."""
    seen = live[:, None] & (s < S)[None, :]
    if CAUSAL:
        seen &= s[None, :] <= token[:, None]
    spots = mask + places[:, None] + s[None, :]
    if MASK == "bool":
        seen &= tl.load(spots, seen, 0) != 0
    return seen, spots


@triton.jit
def _capped(score, softcap):
    """cap · tanh(score / cap)."""
    power = tl.exp2(tl.minimum(tl.abs(score) * (2 / softcap), 60.0) * LOG2E)
    size = softcap * (1 - 2 / (power + 1))
    return tl.where(score < 0, -size, size)


@triton.jit
def _softmax(score, seen, top):
    """(p, what sums are multiplied with, the greatest score): with the scores of more keys."""
    score = tl.where(seen, score, float("-inf"))
    new = tl.maximum(top, tl.max(score, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    return tl.exp2((score - base[:, None]) * LOG2E), tl.exp2((top - base) * LOG2E), new


@triton.jit
def _weights(p, scale, grown, unit, IN_F16: tl.constexpr):
    """(p · s_v, factor on sums, unit of sums): in float16 in units of the greatest s_v so far."""
    if IN_F16:
        new = tl.maximum(tl.maximum(unit, tl.max(scale, 0)), 1e-30)
        weights, grown, unit = p * (scale / new)[None, :], grown * (unit / new), new
    else:
        weights = p * scale[None, :]
    return weights, grown, unit


@triton.jit
def _queries(q, source, live, d, WIDTH: tl.constexpr, STEP: tl.constexpr, FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """[BM, BD] of ``DTYPE``: channels FIRST, FIRST + STEP and so on."""
    at = d * STEP + FIRST
    return tl.load(q + source[:, None] + at[None, :], live[:, None] & (at < WIDTH)[None, :], 0.0).to(DTYPE)


@triton.jit
def _scores(
    q_low, q_high, q_sum, codes, k, s, step, S, scale, KIND: tl.constexpr, HALF: tl.constexpr, BYTES: tl.constexpr,
    EACH: tl.constexpr, ZERO: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """scale · q k̂ᵀ, float32 [BM, keys]."""
    low, high = _tiles(codes, k, s, step, S, KIND, BYTES, EACH, ZERO, BD, BS, DTYPE, ASM)
    score = tl.dot(q_low, tl.trans(low), input_precision=PRECISION)
    if HALF:
        score = tl.dot(q_high, tl.trans(high), score, input_precision=PRECISION)
    if EACH:
        score *= scale
    else:
        k_scale, k_zero = _numbers(k, s, step, S, KIND, BYTES, ZERO)
        if ZERO:
            score -= q_sum[:, None] * k_zero[None, :]
        score *= (k_scale * scale)[None, :]
    return score


@triton.jit
def _add_values(
    low, high, zeros, unit, p, grown, codes, v, s, step, S, KIND: tl.constexpr, HALF: tl.constexpr,
    BYTES: tl.constexpr, EACH: tl.constexpr, ZERO: tl.constexpr, IN_F16: tl.constexpr, BV: tl.constexpr,
    BS: tl.constexpr, DTYPE: tl.constexpr, ROUND: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """(sums of the low halves, of the high halves, of zero points, unit) with those of these keys added."""
    if not EACH:
        v_scale, v_zero = _numbers(v, s, step, S, KIND, BYTES, ZERO)
        p, grown, unit = _weights(p, v_scale, grown, unit, IN_F16)
    weights = p.to(ROUND)
    if ZERO and not EACH:
        zeros = zeros * grown + tl.sum(weights.to(tl.float32) * v_zero[None, :], 1)
    v_low, v_high = _tiles(codes, v, s, step, S, KIND, BYTES, EACH, ZERO, BV, BS, DTYPE, ASM)
    low = tl.dot(weights.to(DTYPE), v_low, low * grown[:, None], input_precision=PRECISION)
    if HALF:
        high = tl.dot(weights.to(DTYPE), v_high, high * grown[:, None], input_precision=PRECISION)
    return low, high, zeros, unit


@triton.jit
def _all_queries(q, source, live, D: tl.constexpr, HALF: tl.constexpr, BD: tl.constexpr, DTYPE: tl.constexpr):
    """(channels that meet low halves, those that meet high halves, the sum of all float32 [BM])."""
    d = tl.arange(0, BD)
    low = _queries(q, source, live, d, D, 2 if HALF else 1, 0, DTYPE)
    high, total = low, tl.sum(low.to(tl.float32), 1)
    if HALF:
        high = _queries(q, source, live, d, D, 2, 1, DTYPE)
        total += tl.sum(high.to(tl.float32), 1)
    return low, high, total


@triton.jit
def _range(part, S, SPLITS, token, CAUSAL: tl.constexpr, SPLIT: tl.constexpr, BS: tl.constexpr):
    """(first, end) of the keys of a program whose last row is ``token``."""
    last = tl.minimum(S, token + 1) if CAUSAL else S
    start = 0
    if SPLIT:
        each = tl.cdiv(tl.cdiv(S, BS), SPLITS) * BS
        start = part * each
        last = tl.minimum(last, start + each)
    return start, last


@triton.jit
def kv_attention_kernel(
    q, k, v, mask, out, parts, HEADS, T, S, SPLITS, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, mask_b, mask_h, mask_t,
    scale, softcap,
    D: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, K_KIND: tl.constexpr, K_EACH: tl.constexpr,
    K_ZERO: tl.constexpr, V_KIND: tl.constexpr, V_EACH: tl.constexpr, V_ZERO: tl.constexpr, CAUSAL: tl.constexpr,
    MASK: tl.constexpr, CAPPED: tl.constexpr, BLIND: tl.constexpr, SPLIT: tl.constexpr, DTYPE: tl.constexpr,
    ROUND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    BV: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """q [., HEADS · G, T, D]; k, v int8 [., HEADS, S, W], strides in units of 16 bytes; mask [., HEADS · G, T, S], its
    keys neighbors, other strides 0 where it is one for all; out [., T, HEADS · G, DV]; parts float32
    [rows, SPLITS, DV + 2].

    BLIND: a row that sees no key gets 0, else NaN. BD, BV: of bytes of codes. Grid: rows / BM, SPLITS, . · HEADS.
    """
    K_HALF: tl.constexpr = K_KIND != "int8" and K_KIND != "e4m3" and K_KIND != "e5m2"
    V_HALF: tl.constexpr = V_KIND != "int8" and V_KIND != "e4m3" and V_KIND != "e5m2"
    K_BYTES: tl.constexpr = (D + 1) // 2 if K_HALF else D
    V_BYTES: tl.constexpr = (DV + 1) // 2 if V_HALF else DV
    IN_F16: tl.constexpr = tl.float16 == ROUND and not V_EACH
    scale, softcap = tl.cast(scale, tl.float32), tl.cast(softcap, tl.float32)  # Inductor passes a float as fp64
    tile, part, batch, head = tl.program_id(0), tl.program_id(1), tl.program_id(2) // HEADS, tl.program_id(2) % HEADS
    row = tile * BM + tl.arange(0, BM)
    token, query = row // G, head * G + row % G
    live, far = token < T, tl.cast(batch, tl.int64)
    source = far * q_b + query.to(tl.int64) * q_h + token.to(tl.int64) * q_t
    q_low, q_high, q_sum = _all_queries(q, source, live, D, K_HALF, BD, DTYPE)
    k += 16 * (far * k_b + tl.cast(head, tl.int64) * k_h)
    v += 16 * (far * v_b + tl.cast(head, tl.int64) * v_h)
    mask += far * mask_b
    places = query.to(tl.int64) * mask_h + token.to(tl.int64) * mask_t
    start, last = _range(part, S, SPLITS, (tile * BM + BM - 1) // G, CAUSAL, SPLIT, BS)

    top, total = tl.full((BM,), float("-inf"), tl.float32), tl.zeros((BM,), tl.float32)
    unit, zeros = 0.0, tl.zeros((BM,), tl.float32)
    low, high = tl.zeros((BM, BV), tl.float32), tl.zeros((BM, BV), tl.float32)
    for first in tl.range(start, last, BS, num_stages=STAGES):
        s = first + tl.arange(0, BS)
        k_codes = _codes(k, s, k_t, S, K_BYTES, BD)
        v_codes = _codes(v, s, v_t, S, V_BYTES, BV)
        score = _scores(q_low, q_high, q_sum, k_codes, k, s, k_t, S, scale, K_KIND, K_HALF, K_BYTES, K_EACH, K_ZERO, BD,
                        BS, DTYPE, PRECISION, ASM)  # fmt: skip
        if CAPPED:
            score = _capped(score, softcap)
        seen, spots = _seen(mask, places, token, live, s, S, CAUSAL, MASK)
        if MASK == "float":
            score += tl.load(spots, seen, 0.0).to(tl.float32)
        p, grown, top = _softmax(score, seen, top)
        total = total * grown + tl.sum(p, 1)
        low, high, zeros, unit = _add_values(low, high, zeros, unit, p, grown, v_codes, v, s, v_t, S, V_KIND, V_HALF,
                                             V_BYTES, V_EACH, V_ZERO, IN_F16, BV, BS, DTYPE, ROUND, PRECISION,
                                             ASM)  # fmt: skip

    low, high = low - zeros[:, None], high - zeros[:, None]
    if IN_F16:
        low, high = low * unit, high * unit
    place = (far * T + token) * (HEADS * G) + query
    _leave(out, parts, place, part, SPLITS, low, high, top, total, live, DV, V_HALF, BLIND, SPLIT, BV)


@triton.jit
def _over(sums, total, BLIND: tl.constexpr):
    """Sums by the sum of the numerators: where no key was seen 0 if BLIND, else NaN."""
    if BLIND:
        sums = tl.where(total[:, None] == 0, 0.0, sums / tl.where(total == 0, 1.0, total)[:, None])
    else:
        sums /= total[:, None]
    return sums


@triton.jit
def _store(out, to, low, high, live, DV: tl.constexpr, HALF: tl.constexpr, BV: tl.constexpr):
    """Rows at ``out + to``: of halves the even channels in ``low``, the odd ones in ``high``."""
    if HALF:
        at = tl.arange(0, 2 * BV)
        both = tl.interleave(low, high)
        tl.store(out + to[:, None] + at[None, :], both, live[:, None] & (at < DV)[None, :])
    else:
        at = tl.arange(0, BV)
        tl.store(out + to[:, None] + at[None, :], low, live[:, None] & (at < DV)[None, :])


@triton.jit
def _leave(
    out, parts, place, part, SPLITS, low, high, top, total, live, DV: tl.constexpr, HALF: tl.constexpr,
    BLIND: tl.constexpr, SPLIT: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Store the results, or what ``kv_combine_kernel`` makes them of."""
    if SPLIT:
        to = (place * SPLITS + part) * (DV + 2)
        tl.store(parts + to + DV, top, live)
        tl.store(parts + to + DV + 1, total, live)
        _store(parts, to, low, high, live, DV, HALF, BV)
    else:
        low, high = _over(low, total, BLIND), _over(high, total, BLIND)
        _store(out, place * DV, low, high, live, DV, HALF, BV)


@triton.jit
def kv_combine_kernel(
    parts, out, SPLITS, DV: tl.constexpr, BLIND: tl.constexpr, PARTS: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    """The ranges of keys of a row, in their order: parts float32 [rows, SPLITS, DV + 2], out [rows, DV]. Grid: rows."""
    row, part, at = tl.cast(tl.program_id(0), tl.int64), tl.arange(0, PARTS), tl.arange(0, BV)
    there = part < SPLITS
    base = parts + (row * SPLITS + part) * (DV + 2)
    top = tl.load(base + DV, there, float("-inf"))
    total = tl.load(base + DV + 1, there, 0.0)
    inside = at < DV
    sums = tl.load(base[:, None] + at[None, :], there[:, None] & inside[None, :], 0.0)
    greatest = tl.max(top, 0)
    share = tl.exp2((top - tl.where(greatest == float("-inf"), 0.0, greatest)) * LOG2E)
    total, found = tl.sum(total * share, 0), tl.sum(sums * share[:, None], 0)
    if BLIND:
        found = tl.where(total == 0, 0.0, found / tl.where(total == 0, 1.0, total))
    else:
        found /= total
    tl.store(out + row * DV + at, found, inside)
