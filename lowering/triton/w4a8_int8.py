"""y = s_x (x - z_x) ((code - zero) · scale)ᵀ + b: 4-bit weights and int8 inputs, int8 dots.

C^T [n, m] = W [n, k] x [m, k]^T with codes less their zero point as int8 in registers. The sum of a group is exact in
int32; its scale is a real number, so groups are added in float32 (one for a whole row: exact to the end). The inputs'
zero point is taken off by w_sum [n] = sum_k (code - zero) · scale. Split K is deterministic (``split_k``).
"""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import int8_codes
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import packed_step, packed_tile, tile_of


@triton.jit
def w4a8_int8_kernel(
    x, x_scale, x_zero, packed, scale, zero, sums, bias, out, workspace, counters, M, N, K, stride_x, stride_out, rows,
    GROUP: tl.constexpr, ZERO: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K]; x_scale float32, x_zero int32 [M]; packed words; scale float32 or bfloat16 and zero uint8
    [groups, rows]; sums float32 [rows]; out [M, N]. GROUP: BK / 2, BK, a multiple of it, or 0 for one scale a row."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    half = tl.arange(0, BK // 2)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + half
    there = (rm < M)[None, :]
    words = packed_tile(packed, pn * BN, split, rows, BN, BK, ASM)
    acc = tl.zeros((BN, BM), tl.float32 if GROUP else tl.int32)
    zeros = tl.load(zero + rn).to(tl.int32)
    for step in tl.range(split, tl.cdiv(K, BK), SPLITS, num_stages=STAGES):
        tile = tl.load(words, eviction_policy="evict_first")
        left = K if EVEN_K else K - step * BK
        x_low = tl.load(inputs, there if EVEN_K else there & (half < left), 0)
        x_high = tl.load(inputs + BK // 2, there if EVEN_K else there & (half + BK // 2 < left), 0)
        if GROUP:
            group = (step * BK) // GROUP * rows + rn
            zeros = tl.load(zero + group).to(tl.int32)
            scales = tl.load(scale + group).to(tl.float32)
        if GROUP and GROUP < BK:  # each half of the block is a group
            zeros2 = tl.load(zero + group + rows).to(tl.int32)
            scales2 = tl.load(scale + group + rows).to(tl.float32)
            low, high = int8_codes(tile, zeros, zeros2, BN, BK, 4, ASM)
            acc += tl.dot(low, x_low, out_dtype=tl.int32).to(tl.float32) * scales[:, None]
            acc += tl.dot(high, x_high, out_dtype=tl.int32).to(tl.float32) * scales2[:, None]
        else:
            low, high = int8_codes(tile, zeros, zeros, BN, BK, 4, ASM)
            if GROUP:
                part = tl.dot(low, x_low, out_dtype=tl.int32)
                part = tl.dot(high, x_high, part, out_dtype=tl.int32)
                acc += part.to(tl.float32) * scales[:, None]
            else:
                acc = tl.dot(low, x_low, acc, out_dtype=tl.int32)
                acc = tl.dot(high, x_high, acc, out_dtype=tl.int32)
        inputs += SPLITS * BK
        words += SPLITS * packed_step(rows, BK, ASM)
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        result = acc.to(tl.float32)
        if GROUP == 0:
            result *= tl.load(scale + rn).to(tl.float32)[:, None]
        if ZERO:
            result -= tl.load(x_zero + rm, rm < M, 0).to(tl.float32)[None, :] * tl.load(sums + rn)[:, None]
        result *= tl.load(x_scale + rm, rm < M, 0.0)[None, :]
        if HAS_BIAS:
            result += tl.load(bias + rn, rn < N, 0.0).to(tl.float32)[:, None]
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, result.to(out.dtype.element_ty), there & (rn < N)[:, None])
