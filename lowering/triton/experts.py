"""y_s = W_e x_s for rows sorted by expert e, in one launch: the loops of ``eight_bit``, ``fp8_block``, ``w4a16``,
``w4a8_int8`` and ``w4a8_fp8``.

A program finds its expert by itself: the tiles of all experts are counted from the ends of their rows, which stay on
the device. No launch depends on them: the grid has room for the most tiles that S rows of E experts can have, and
programs that are left over do nothing. Every tile is one program's, without split K, so results do not depend on order.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import eight_bit_sums, four_bit_sums, fp8_block_sums, signed_fp8_sums
from qpass.lowering.triton.tile import packed_tile


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
    end = tl.where(real & (first < last), tl.cdiv(K, BK), 0)
    acc = eight_bit_sums(inputs, weights, there, K, 0, end, 1, EVEN_K, BM, BN, BK, STAGES, "")
    if ZERO:
        acc -= tl.load(sums + own * N + rows)[:, None] * tl.load(x_zero + rm, rm < last, 0)[None, :]
    result = acc.to(tl.float32) * tl.load(scale + own * N + rows)[:, None]
    result *= tl.load(x_scale + rm, rm < last, 0.0)[None, :]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(real, result, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])


@triton.jit
def grouped_fp8_block_kernel(
    x, x_scale, weight, scale, offsets, out, E, M, N, K, tiles_m, stride_x, stride_w, stride_out,
    EVEN_K: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, K] and weight [E, N, K] E4M3; x_scale float32 [M, K blocks]; scale float32 [E, N / 128, K blocks]; out
    [M, N]. Grid and offsets as above; BN divides 128, which divides N."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1).to(tl.int64)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    k, blocks, inside = tl.arange(0, 128), tl.cdiv(K, 128), rm < last
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + k[:, None]
    weights = weight + (own * N + rn)[:, None] * stride_w + k[None, :]
    end = tl.where((expert < E) & (first < last), blocks, 0)
    scales = scale + (own * N + pn * BN) // 128 * blocks
    acc = fp8_block_sums(inputs, weights, x_scale + rm.to(tl.int64) * blocks, scales, inside, K, 0, end, 1, EVEN_K, BM,
                         BN, STAGES, "")  # fmt: skip
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(expert < E, acc, 0.0).to(out.dtype.element_ty), inside[None, :] & (rn < N)[:, None])


@triton.jit
def grouped_w4a16_kernel(
    x, packed, meta, scale, offsets, out, E, M, N, K, tiles_m, stride_x, stride_out, rows, groups,
    GROUP: tl.constexpr, SCALE: tl.constexpr, EVEN_K: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, JOINED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x [M, K] bfloat16 (any float without ASM); packed words of each expert; meta and scale [E, groups, rows] as for
    ``w4a16``; out [M, N]. Grid and offsets as above; rows and GROUP as in ``w4a16``."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    k = tl.arange(0, BK // 2 if JOINED else BK // 4)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + k
    there = (rm < last)[None, :]
    blocks = tl.cdiv(K, BK)
    words = packed_tile(packed, pn * BN, own.to(tl.int64) * blocks, rows, BN, BK, 8 if ASM else 4)
    mine = own.to(tl.int64) * groups * rows + rn
    end = tl.where((expert < E) & (first < last), blocks, 0)
    acc = four_bit_sums(inputs, words, meta, scale, mine, there, K, rows, 0, end,
                        "bf16", GROUP, SCALE, 1, EVEN_K, BM, BN, BK, STAGES, JOINED, ASM,
                        "")  # fmt: skip
    if GROUP == 0:
        acc *= tl.load(scale + mine).to(tl.float32)[:, None]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(expert < E, acc, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])


@triton.jit
def grouped_w4a8_int8_kernel(
    x, x_scale, x_zero, packed, meta, scale, sums, offsets, out, E, M, N, K, tiles_m, stride_x, stride_out, rows,
    groups, GROUP: tl.constexpr, SCALE: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, EVEN_K: tl.constexpr,
    ET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    JOINED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K]; x_scale float32, x_zero int32 [M]; packed words of each expert, meta and scale as above; sums
    float32 [E, rows]; out [M, N]. GROUP as in ``w4a8_int8``, 0 for one scale a row."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    k = tl.arange(0, BK // 2 if JOINED else BK // 4)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + k
    there = (rm < last)[None, :]
    blocks = tl.cdiv(K, BK)
    words = packed_tile(packed, pn * BN, own.to(tl.int64) * blocks, rows, BN, BK, 8 if ASM else 4)
    mine = own.to(tl.int64) * groups * rows + rn
    end = tl.where((expert < E) & (first < last), blocks, 0)
    acc = four_bit_sums(inputs, words, meta, scale, mine, there, K, rows, 0, end,
                        "signed" if SIGNED else "plain", GROUP, SCALE, 1, EVEN_K, BM, BN, BK, STAGES, JOINED, ASM,
                        "")  # fmt: skip
    result = acc.to(tl.float32)
    if SIGNED:
        result *= 0.0625
    if GROUP == 0:
        result *= tl.load(scale + mine).to(tl.float32)[:, None]
    if ZERO:
        result -= tl.load(x_zero + rm, rm < last, 0).to(tl.float32)[None, :] * tl.load(sums + own * rows + rn)[:, None]
    result *= tl.load(x_scale + rm, rm < last, 0.0)[None, :]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(expert < E, result, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])


@triton.jit
def grouped_w4a8_fp8_kernel(
    x, x_scale, packed, tables, choice, factor, offsets, out, E, M, N, K, tiles_m, stride_x, stride_out, rows, groups,
    GROUP: tl.constexpr, REAL: tl.constexpr, EVEN_K: tl.constexpr, ET: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x E4M3 [M, K]; x_scale float32 [M]; packed words of each expert; tables int32 [16, 2], of all of them; choice
    [E, groups, rows] and factor float32 [E, rows] as in ``w4a8_fp8``; out [M, N]. Grid and offsets as above."""
    pn, tile = tl.program_id(0) // tiles_m, tl.program_id(0) % tiles_m
    expert, first, last = rows_of(tile, offsets, E, M, ET, BM)
    own = tl.minimum(expert, E - 1)
    rn, rm = pn * BN + tl.arange(0, BN), first + tl.arange(0, BM)
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + tl.arange(0, BK // 2)[:, None]
    there = (rm < last)[None, :]
    blocks = tl.cdiv(K, BK)
    words = packed_tile(packed, pn * BN, own.to(tl.int64) * blocks, rows, BN, BK, 16 if ASM else 4)
    mine = own.to(tl.int64) * groups * rows + rn
    end = tl.where((expert < E) & (first < last), blocks, 0)
    acc = signed_fp8_sums(inputs, words, tables, choice, mine, there, K, rows, 0, end, GROUP, REAL, 1, EVEN_K, BM, BN,
                          BK, STAGES, ASM, "")  # fmt: skip
    acc *= tl.load(factor + own * rows + rn)[:, None] * tl.load(x_scale + rm, rm < last, 0.0)[None, :]
    spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
    tl.store(spots, tl.where(expert < E, acc, 0.0).to(out.dtype.element_ty), there & (rn < N)[:, None])
