"""y = x ((code - zero) · scale)ᵀ + b: 4-bit weights, 16-bit inputs, bfloat16 dots with float32 sums.

The weight is the left operand, from registers: C^T [n, m] = W [n, k] x [m, k]^T. Codes less their zero point are exact
in bfloat16; a group's scale multiplies the sum of its products in float32, a channel's the sum of all, so a weight is
never rounded. A low-rank branch is a second dot at the end. Split K is deterministic (``split_k``).
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import four_bit_sums
from qpass.lowering.triton.low_rank import add_low_rank
from qpass.lowering.triton.residual import add_residual
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import packed_tile, tile_of


@triton.jit
def w4a16_kernel(
    x, packed, meta, scale, bias, branch, up, up_scale, residual, out, workspace, counters, M, N, K, stride_x,
    stride_out, stride_residual, rows,
    GROUP: tl.constexpr, SCALE: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    JOINED: tl.constexpr, ASM: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, INT8_UP: tl.constexpr,
):  # fmt: skip
    """x [M, K] bfloat16 (any float without ASM); packed words; meta int32 [groups, rows] (``decode``); scale
    [groups, rows], read for SCALE apart, which GROUP 0 needs; out [M, N]. Grid: tiles of N times tiles of M, SPLITS.
    rows: N padded; GROUP: BK / 4, BK / 2, BK, a multiple, or 0 for one scale a row. branch, up: see ``low_rank``."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    k = tl.arange(0, BK // 2 if JOINED else BK // 4)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + k
    there = (rm < M)[None, :]
    words = packed_tile(packed, pn * BN, split, rows, BN, BK, 8 if ASM else 4)
    acc = four_bit_sums(inputs, words, meta, scale, rn, there, K, rows, split, tl.cdiv(K, BK),
                        "bf16", GROUP, SCALE, SPLITS, EVEN_K, BM, BN, BK, STAGES, JOINED, ASM,
                        "evict_first")  # fmt: skip
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        if GROUP == 0:
            acc *= tl.load(scale + rn).to(tl.float32)[:, None]
        if RANK:
            acc = add_low_rank(acc, branch, up, up_scale, rn, rm, N, M, RANK, PADDED, INT8_UP)
        if HAS_BIAS:
            acc += tl.load(bias + rn, rn < N, 0.0).to(tl.float32)[:, None]
        if HAS_RESIDUAL:
            acc = add_residual(acc, residual, rn, rm, stride_residual, N, there, out.dtype.element_ty)
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, acc.to(out.dtype.element_ty), there & (rn < N)[:, None])
