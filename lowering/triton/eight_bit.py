"""y = s_x s_w (x - z_x) Wᵀ + b for int8, and s_x s_w x Wᵀ + b for E4M3: both operands in eight bits, few rows.

The weight is the left operand, C^T [n, m] = W [n, k] x [m, k]^T, so that even 16 tokens are a dot of 64 rows by 16
columns, which sm_90 has as one warp-group instruction. Int8 sums are exact int32; a zero point of the inputs is taken
off by the weight's row sums. Split K is deterministic (``split_k``).
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import eight_bit_sums
from qpass.lowering.triton.residual import add_residual
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import tile_of


@triton.jit
def eight_bit_kernel(
    x, x_scale, x_zero, weight, scale, sums, bias, residual, out, workspace, counters, M, N, K, stride_x, stride_w,
    stride_out, stride_residual,
    INTEGER: tl.constexpr, ZERO: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, K] and weight [N, K] of int8 or E4M3; x_scale float32 and x_zero int32 [M]; scale float32 and sums int32
    [N]; out [M, N]. Grid: tiles of N times tiles of M, SPLITS."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    rows = tl.minimum(rn, N - 1).to(tl.int64)  # a row beyond the last is computed and not stored
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + k[:, None]
    weights = weight + rows[:, None] * stride_w + split * BK + k[None, :]
    there = (rm < M)[None, :]
    acc = eight_bit_sums(inputs, weights, there, K, split, tl.cdiv(K, BK), SPLITS, EVEN_K, BM, BN, BK, STAGES,
                         "evict_first")  # fmt: skip
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        if ZERO:
            zeros, row_sums = tl.load(x_zero + rm, rm < M, 0), tl.load(sums + rows)
            acc -= row_sums[:, None] * zeros[None, :]
        result = acc.to(tl.float32) * tl.load(scale + rows)[:, None] * tl.load(x_scale + rm, rm < M, 0.0)[None, :]
        if HAS_BIAS:
            result += tl.load(bias + rows).to(tl.float32)[:, None]
        if HAS_RESIDUAL:
            result = add_residual(result, residual, rn, rm, stride_residual, N, there, out.dtype.element_ty)
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, result.to(out.dtype.element_ty), there & (rn < N)[:, None])
