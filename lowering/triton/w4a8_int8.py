"""y = s_x (x - z_x) ((code - zero) · scale)ᵀ + b: 4-bit weights and int8 inputs, int8 dots.

C^T [n, m] = W [n, k] x [m, k]^T with codes less their zero point as int8 in registers; signed codes, without zero
points, as 16 times the code, which costs less than half. The sum of a group is exact in int32; its scale is a real
number, so groups are added in float32 (one for a whole row: exact to the end). The inputs' zero point is taken off by
w_sum [n] = sum_k (code - zero) · scale. A low-rank branch is a second dot. Split K is deterministic (``split_k``).
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import four_bit_sums
from qpass.lowering.triton.low_rank import add_low_rank
from qpass.lowering.triton.residual import add_residual
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import packed_tile, tile_of


@triton.jit
def w4a8_int8_kernel(
    x, x_scale, x_zero, packed, meta, scale, sums, bias, branch, up, up_scale, residual, out, workspace, counters, M,
    N, K, stride_x, stride_out, stride_residual, rows,
    GROUP: tl.constexpr, SCALE: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr, SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, JOINED: tl.constexpr, ASM: tl.constexpr, RANK: tl.constexpr,
    PADDED: tl.constexpr, INT8_UP: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K]; x_scale float32, x_zero int32 [M]; packed words, meta and scale as for ``w4a16``; sums float32
    [rows]; out [M, N]. GROUP: BK / 4, BK / 2, BK, a multiple of it, or 0 for one scale a row."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    k = tl.arange(0, BK // 2 if JOINED else BK // 4)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + k
    there = (rm < M)[None, :]
    words = packed_tile(packed, pn * BN, split, rows, BN, BK, 8 if ASM else 4)
    acc = four_bit_sums(inputs, words, meta, scale, rn, there, K, rows, split, tl.cdiv(K, BK),
                        "signed" if SIGNED else "plain", GROUP, SCALE, SPLITS, EVEN_K, BM, BN, BK, STAGES, JOINED, ASM,
                        "evict_first")  # fmt: skip
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        result = acc.to(tl.float32)
        if SIGNED:
            result *= 0.0625
        if GROUP == 0:
            result *= tl.load(scale + rn).to(tl.float32)[:, None]
        if ZERO:
            result -= tl.load(x_zero + rm, rm < M, 0).to(tl.float32)[None, :] * tl.load(sums + rn)[:, None]
        result *= tl.load(x_scale + rm, rm < M, 0.0)[None, :]
        if RANK:
            result = add_low_rank(result, branch, up, up_scale, rn, rm, N, M, RANK, PADDED, INT8_UP)
        if HAS_BIAS:
            result += tl.load(bias + rn, rn < N, 0.0).to(tl.float32)[:, None]
        if HAS_RESIDUAL:
            result = add_residual(result, residual, rn, rm, stride_residual, N, there, out.dtype.element_ty)
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, result.to(out.dtype.element_ty), there & (rn < N)[:, None])
