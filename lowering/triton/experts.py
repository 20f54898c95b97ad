"""y_s = W_e x_s for rows sorted by expert e, in one launch: the loops of ``eight_bit``, ``w4a16`` and ``w4a8_int8``.

A program finds its expert by itself: the tiles of all experts are counted from the ends of their rows, which stay on
the device. No launch depends on them: the grid has room for the most tiles that S rows of E experts can have, and
programs that are left over do nothing. Every tile is one program's, without split K, so results do not depend on order.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import bf16_codes, int8_codes
from qpass.lowering.triton.tile import packed_step, packed_tile


@triton.jit
def rows_of(tile, offsets, E, M, ET: tl.constexpr, BM: tl.constexpr):
    """(expert, first row, end of the expert's rows) of the tile of that number; rows behind the last expert's are E's.

    ET: a power of two above E. Tiles that do not exist have no rows.
    """
    expert = tl.arange(0, ET)
    end = tl.where(expert < E, tl.load(offsets + expert, expert < E, 0), M)
    start = tl.load(offsets + expert - 1, (expert > 0) & (expert <= E), 0)
    count = tl.where(expert <= E, (end - start + BM - 1) // BM, 0)
    behind = tl.cumsum(count, 0)
    mine = (behind > tile) & (behind - count <= tile)
    first = tl.sum(tl.where(mine, start + (tile - behind + count) * BM, 0), 0)
    return tl.sum(tl.where(mine, expert, 0), 0), first, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit
def grouped_eight_bit_kernel(
    x, x_scale, x_zero, weight, scale, sums, offsets, out, E, M, N, K, tiles_m, stride_x, stride_w, stride_out,
    INTEGER: tl.constexpr, ZERO: tl.constexpr, EVEN_K: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, K] and weight [E, N, K] of int8 or E4M3; x_scale float32 and x_zero int32 [M]; scale float32 and sums int32
    [E, N]; offsets int32 [E]; out [M, N]. Grid: tiles of N times tiles_m."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    real = expert < E
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    k = tl.arange(0, BK)
    rows = tl.minimum(rn, N - 1)  # a row beyond the last is computed and not stored
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + k[:, None]
    weights = weight + own.to(tl.int64) * N * stride_w + rows.to(tl.int64)[:, None] * stride_w + k[None, :]
    there = (rm < last)[None, :]
    acc = tl.zeros((BN, BM), tl.int32 if INTEGER else tl.float32)
    for step in tl.range(0, tl.where(real & (first < last), tl.cdiv(K, BK), 0), num_stages=STAGES):
        if EVEN_K:
            w_tile = tl.load(weights)
            x_tile = tl.load(inputs, there, 0.0)
        else:
            w_tile = tl.load(weights, (k < K - step * BK)[None, :], 0.0)
            x_tile = tl.load(inputs, there & (k < K - step * BK)[:, None], 0.0)
        acc = tl.dot(w_tile, x_tile, acc, out_dtype=tl.int32 if INTEGER else tl.float32)
        inputs += BK
        weights += BK
    if ZERO:
        acc -= tl.load(sums + own * N + rows)[:, None] * tl.load(x_zero + rm, rm < last, 0)[None, :]
    result = acc.to(tl.float32) * tl.load(scale + own * N + rows)[:, None]
    result *= tl.load(x_scale + rm, rm < last, 0.0)[None, :]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(real, result, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])


@triton.jit
def grouped_w4a16_kernel(
    x, packed, scale, zero, offsets, out, E, M, N, K, tiles_m, stride_x, stride_out, rows, groups,
    GROUP: tl.constexpr, EVEN_K: tl.constexpr, KW: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x [M, K] bfloat16 (any float without ASM); packed words of each expert; scale of a float dtype and zero uint8
    [E, groups, rows]; out [M, N]. Grid and offsets as above; rows and GROUP as in ``w4a16``."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    half = tl.arange(0, BK // 2)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + half
    there = (rm < last)[None, :]
    blocks = tl.cdiv(K, BK)
    words = packed_tile(packed, pn * BN, own.to(tl.int64) * blocks, rows, BN, BK, ASM)
    mine = own.to(tl.int64) * groups * rows + rn
    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(0, tl.where((expert < E) & (first < last), blocks, 0), num_stages=STAGES):
        codes = tl.load(words)
        left = K if EVEN_K else K - step * BK
        x_low = tl.load(inputs, there if EVEN_K else there & (half < left), 0.0)
        x_high = tl.load(inputs + BK // 2, there if EVEN_K else there & (half + BK // 2 < left), 0.0)
        group = (step * BK) // GROUP * rows + mine
        zeros = tl.load(zero + group).to(tl.int32)
        scales = tl.load(scale + group).to(tl.float32)
        if GROUP < BK:  # each half of the block is a group
            zeros2 = tl.load(zero + group + rows).to(tl.int32)
            scales2 = tl.load(scale + group + rows).to(tl.float32)
            low, high = bf16_codes(codes, zeros, zeros2, BN, BK, KW, ASM)
            acc += tl.dot(low.to(x_low.dtype), x_low) * scales[:, None]
            acc += tl.dot(high.to(x_high.dtype), x_high) * scales2[:, None]
        else:
            low, high = bf16_codes(codes, zeros, zeros, BN, BK, KW, ASM)
            part = tl.dot(low.to(x_low.dtype), x_low)
            part = tl.dot(high.to(x_high.dtype), x_high, part)
            acc += part * scales[:, None]
        inputs += BK
        words += packed_step(rows, BK, ASM)
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, acc.to(out.dtype.element_ty), there & (rn < N)[:, None])


@triton.jit
def grouped_w4a8_int8_kernel(
    x, x_scale, x_zero, packed, scale, zero, sums, offsets, out, E, M, N, K, tiles_m, stride_x, stride_out, rows,
    groups, GROUP: tl.constexpr, ZERO: tl.constexpr, EVEN_K: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K]; x_scale float32, x_zero int32 [M]; packed words of each expert; scale float32 or bfloat16 and zero
    uint8 [E, groups, rows]; sums float32 [E, rows]; out [M, N]. GROUP as in ``w4a8_int8``, 0 for one scale a row."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    half = tl.arange(0, BK // 2)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + half
    there = (rm < last)[None, :]
    blocks = tl.cdiv(K, BK)
    words = packed_tile(packed, pn * BN, own.to(tl.int64) * blocks, rows, BN, BK, ASM)
    mine = own.to(tl.int64) * groups * rows + rn
    acc = tl.zeros((BN, BM), tl.float32 if GROUP else tl.int32)
    zeros = tl.load(zero + mine).to(tl.int32)
    for step in tl.range(0, tl.where((expert < E) & (first < last), blocks, 0), num_stages=STAGES):
        codes = tl.load(words)
        left = K if EVEN_K else K - step * BK
        x_low = tl.load(inputs, there if EVEN_K else there & (half < left), 0)
        x_high = tl.load(inputs + BK // 2, there if EVEN_K else there & (half + BK // 2 < left), 0)
        if GROUP:
            group = (step * BK) // GROUP * rows + mine
            zeros = tl.load(zero + group).to(tl.int32)
            scales = tl.load(scale + group).to(tl.float32)
        if GROUP and GROUP < BK:  # each half of the block is a group
            zeros2 = tl.load(zero + group + rows).to(tl.int32)
            scales2 = tl.load(scale + group + rows).to(tl.float32)
            low, high = int8_codes(codes, zeros, zeros2, BN, BK, 4, ASM)
            acc += tl.dot(low, x_low, out_dtype=tl.int32).to(tl.float32) * scales[:, None]
            acc += tl.dot(high, x_high, out_dtype=tl.int32).to(tl.float32) * scales2[:, None]
        else:
            low, high = int8_codes(codes, zeros, zeros, BN, BK, 4, ASM)
            if GROUP:
                part = tl.dot(low, x_low, out_dtype=tl.int32)
                part = tl.dot(high, x_high, part, out_dtype=tl.int32)
                acc += part.to(tl.float32) * scales[:, None]
            else:
                acc = tl.dot(low, x_low, acc, out_dtype=tl.int32)
                acc = tl.dot(high, x_high, acc, out_dtype=tl.int32)
        inputs += BK
        words += packed_step(rows, BK, ASM)
    result = acc.to(tl.float32)
    if GROUP == 0:
        result *= tl.load(scale + mine).to(tl.float32)[:, None]
    if ZERO:
        result -= tl.load(x_zero + rm, rm < last, 0).to(tl.float32)[None, :] * tl.load(sums + own * rows + rn)[:, None]
    result *= tl.load(x_scale + rm, rm < last, 0.0)[None, :]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(expert < E, result, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])
