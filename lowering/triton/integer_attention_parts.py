"""``integer_attention`` with its keys cut over programs, for few rows: two launches, and the same bits.

``peaks`` gives of each part the least exponents and the greatest score at the part's own, doubled, which can be moved
to any lower exponent without a change (``integer_attention``). ``parts`` takes those of all parts together, and sums
the weights and the weighted values of its own keys; the program of a row tile that comes last adds what the others
left, and divides. Sums are exact integers, so nothing depends on where keys are cut, or on who comes when.

The counters are cleared by ``peaks``, which always runs before: they need no memory that lasts.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_attention import (
    LEAST,
    NONE,
    coarser,
    divided,
    end_of_keys,
    look,
    query_codes,
    row_factor,
    rows_of,
    weighed,
)


@triton.jit
def _cut(last, part, PARTS: tl.constexpr, SHARE: tl.constexpr, BS: tl.constexpr):
    """(first, last, parts that have keys). A part has SHARE keys at least, so that short rows are not cut in crumbs."""
    share = tl.maximum(tl.cdiv(tl.cdiv(last, PARTS), BS) * BS, SHARE)
    return part * share, tl.minimum(part * share + share, last), tl.maximum(tl.cdiv(last, share), 1)


@triton.jit
def integer_attention_peaks_kernel(
    q, keys, values, keep, peaks, counters, HEADS, T, S, key_b, key_h, key_t, value_b, value_h, value_t,
    keep_b, keep_t, keep_s,
    D: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, UP: tl.constexpr, CAUSAL: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, PARTS: tl.constexpr, SHARE: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Arguments of ``integer_attention_kernel``; peaks int32 [batch · HEADS, tiles, PARTS, 3, BM]: the least exponent
    of keys, the greatest doubled score at it, the least exponent of values. counters int32 [batch · HEADS, tiles]
    become 0. Grid: tiles of T · G / BM, batch · HEADS, PARTS."""
    tile, batch, head = tl.program_id(0), tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    part, place = tl.program_id(2), tl.program_id(1) * tl.num_programs(0) + tile
    token, _, live, source = rows_of(tile, batch, head, HEADS, T, G, BM)
    first, last, _ = _cut(end_of_keys(tile, S, CAUSAL, G, BM), part, PARTS, SHARE, BS)
    far = batch.to(tl.int64)
    keys += UNIT * (far * key_b + head.to(tl.int64) * key_h)
    values += UNIT * (far * value_b + head.to(tl.int64) * value_h)
    if part == 0:
        tl.store(counters + place, 0)
    if (first < last) | (part == 0):
        least, top, least_v = look(
            query_codes(q, source, live, D, BD), keys, values, keep + far * keep_b, token, live, first, last, S, key_t,
            value_t, keep_t, keep_s, D, DV, UP, CAUSAL, KEEP, UNIT, BM, BS, BD)  # fmt: skip
        spots = peaks + (place.to(tl.int64) * PARTS + part) * (3 * BM) + tl.arange(0, BM)
        tl.store(spots, least)
        tl.store(spots + BM, top)
        tl.store(spots + 2 * BM, least_v)


@triton.jit
def _together(peaks, used, PARTS: tl.constexpr, BM: tl.constexpr):
    """(least exponent of keys, greatest doubled score, least exponent of values), int32 [rows], of all parts."""
    part = tl.arange(0, PARTS)[:, None]
    spots, there = peaks + part * (3 * BM) + tl.arange(0, BM)[None, :], part < used
    leasts, tops = tl.load(spots, there, NONE), tl.load(spots + BM, there, LEAST)
    least = tl.min(leasts, 0)
    return least, tl.max(coarser(tops, leasts - least[None, :]), 0), tl.min(tl.load(spots + 2 * BM, there, NONE), 0)


@triton.jit
def _all_parts(high, low, total, folded, sums, totals, counter, part, used, live, BM: tl.constexpr, BV: tl.constexpr):
    """(the four sums of all parts, whether this program is the one to use them)."""
    r = tl.arange(0, BM)
    spots, inside = r[:, None] * BV + tl.arange(0, BV)[None, :], live[:, None]
    others = used > 1
    own, own_totals = sums + part * (2 * BM * BV), totals + part * (2 * BM) + r
    tl.store(own + spots, high, inside & others, cache_modifier=".cg")
    tl.store(own + BM * BV + spots, low, inside & others, cache_modifier=".cg")
    tl.store(own_totals, total, live & others, cache_modifier=".cg")
    tl.store(own_totals + BM, folded, live & others, cache_modifier=".cg")
    tl.debug_barrier()  # the sums of all threads are stored before one of them says so
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    mine = arrived == used - 1
    if mine:
        for other in range(used):
            there, rest = inside & (other != part), live & (other != part)
            theirs, their_totals = sums + other * (2 * BM * BV) + spots, totals + other * (2 * BM) + r
            high += tl.load(theirs, there, 0, cache_modifier=".cg")
            low += tl.load(theirs + BM * BV, there, 0, cache_modifier=".cg")
            total += tl.load(their_totals, rest, 0, cache_modifier=".cg")
            folded += tl.load(their_totals + BM, rest, 0, cache_modifier=".cg")
    return high, low, total, folded, mine


@triton.jit
def integer_attention_parts_kernel(
    q, m, k, keys, values, keep, table, peaks, sums, totals, counters, out, out_k, HEADS, T, S, key_b, key_h, key_t,
    value_b, value_h, value_t, keep_b, keep_t, keep_s, scale_mantissa, scale_exponent,
    D: tl.constexpr, DV: tl.constexpr, G: tl.constexpr, UP: tl.constexpr, CLIP: tl.constexpr, CAUSAL: tl.constexpr,
    KEEP: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, SHARE: tl.constexpr, BM: tl.constexpr,
    BS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Arguments of ``integer_attention_kernel`` and ``peaks``; sums int32 [batch · HEADS, tiles, PARTS, 2, BM, BV],
    totals int64 [batch · HEADS, tiles, PARTS, 2, BM]. Grid: tiles of T · G / BM, batch · HEADS, PARTS."""
    tile, batch, head = tl.program_id(0), tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    part, place = tl.program_id(2), (tl.program_id(1) * tl.num_programs(0) + tile).to(tl.int64)
    token, query, live, source = rows_of(tile, batch, head, HEADS, T, G, BM)
    first, last, used = _cut(end_of_keys(tile, S, CAUSAL, G, BM), part, PARTS, SHARE, BS)
    far = batch.to(tl.int64)
    keys += UNIT * (far * key_b + head.to(tl.int64) * key_h)
    values += UNIT * (far * value_b + head.to(tl.int64) * value_h)
    if (first < last) | (part == 0):
        least, top, least_v = _together(peaks + place * (PARTS * 3 * BM), used, PARTS, BM)
        factor, places = row_factor(m, k, source, live, least, scale_mantissa, scale_exponent, UP)
        high, low, total, folded = weighed(
            query_codes(q, source, live, D, BD), keys, values, keep + far * keep_b, table, token, live, least, top,
            least_v, factor, places, first, last, S, key_t, value_t, keep_t, keep_s,
            D, DV, UP, CLIP, CAUSAL, KEEP, UNIT, BM, BS, BD, BV)  # fmt: skip
        sums += place * (PARTS * 2 * BM * BV)
        totals += place * (PARTS * 2 * BM)
        high, low, total, folded, mine = _all_parts(
            high, low, total, folded, sums, totals, counters + place, part, used, live, BM, BV)  # fmt: skip
        if mine:
            result, above = divided(high, low, total, folded)
            spot, v = (far * T + token) * (HEADS * G) + query, tl.arange(0, BV)
            tl.store(out + spot[:, None] * DV + v[None, :], result, live[:, None] & (v < DV)[None, :])
            tl.store(out_k + spot, least_v + above, live)
