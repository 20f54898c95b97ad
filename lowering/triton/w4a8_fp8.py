"""y = s_x c_n sum_k x_k byte_nk + b: weights of a sign and three bits become E4M3 bytes by a look-up, E4M3 inputs.

Scales of a row that are powers of two apart (ZeroQuant-FP's M1 and M2, E8M0) choose one of 16 tables for each group,
whose bytes already hold the factor: the cast is exact (``qpass.numerics.shift_cast``), and one factor a row is left.
Real scales take the table of the grid itself, and multiply the sum of their group in float32. A low-rank branch is a
second dot at the end.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import signed_fp8_sums
from qpass.lowering.triton.low_rank import add_low_rank
from qpass.lowering.triton.residual import add_residual
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import packed_tile, tile_of


@triton.jit
def w4a8_fp8_kernel(
    x, x_scale, packed, tables, choice, factor, bias, branch, up, up_scale, residual, out, workspace, counters, M, N,
    K, stride_x, stride_out, stride_residual, rows,
    GROUP: tl.constexpr, REAL: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    ASM: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, INT8_UP: tl.constexpr,
):  # fmt: skip
    """x E4M3 [M, K]; x_scale float32 [M]; packed words; tables int32 [16, 2]; choice uint8 [groups, rows], a row of
    tables, or with REAL a scale, float32 or bfloat16; factor float32 [rows]; out [M, N]. GROUP: BK / 2, BK or more."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    half = tl.arange(0, BK // 2)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + half
    there = (rm < M)[None, :]
    words = packed_tile(packed, pn * BN, split, rows, BN, BK, 16 if ASM else 4)
    acc = signed_fp8_sums(inputs, words, tables, choice, rn, there, K, rows, split, tl.cdiv(K, BK), GROUP, REAL,
                          SPLITS, EVEN_K, BM, BN, BK, STAGES, ASM, "evict_first")  # fmt: skip
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        acc = acc * tl.load(factor + rn)[:, None] * tl.load(x_scale + rm, rm < M, 0.0)[None, :]
        if RANK:
            acc = add_low_rank(acc, branch, up, up_scale, rn, rm, N, M, RANK, PADDED, INT8_UP)
        if HAS_BIAS:
            acc += tl.load(bias + rn, rn < N, 0.0).to(tl.float32)[:, None]
        if HAS_RESIDUAL:
            acc = add_residual(acc, residual, rn, rm, stride_residual, N, there, out.dtype.element_ty)
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, acc.to(out.dtype.element_ty), there & (rn < N)[:, None])
