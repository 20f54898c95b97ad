"""y = sum over K blocks of 128: (x block · W blockᵀ) · s_x [m, block] · s_w [n / 128, block], all in E4M3, + b.

The dot is E4M3 by E4M3; the product of the two scales multiplies the float32 sum of a block. (Scales that multiply the
operands make the dot TF32, four times slower.) C^T [n, m] = W x^T as in the other kernels.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.loops import fp8_block_sums
from qpass.lowering.triton.residual import add_residual
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import tile_of


@triton.jit
def fp8_block_kernel(
    x, x_scale, weight, scale, bias, residual, out, workspace, counters, M, N, K, stride_x, stride_w, stride_out,
    stride_residual,
    SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x [M, K] and weight [N, K] E4M3; x_scale float32 [M, K blocks]; scale float32 [N blocks, K blocks]; out [M, N].
    BN divides 128."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    k, blocks = tl.arange(0, 128), tl.cdiv(K, 128)
    rows = tl.minimum(rn, N - 1).to(tl.int64)
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * 128 + k[:, None]
    weights = weight + rows[:, None] * stride_w + split * 128 + k[None, :]
    there = (rm < M)[None, :]
    acc = fp8_block_sums(inputs, weights, x_scale + rm * blocks, scale + pn * BN // 128 * blocks, rm < M, K, split,
                         blocks, SPLITS, EVEN_K, BM, BN, STAGES, "evict_first")  # fmt: skip
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        if HAS_BIAS:
            acc += tl.load(bias + rows).to(tl.float32)[:, None]
        if HAS_RESIDUAL:
            acc = add_residual(acc, residual, rn, rm, stride_residual, N, there, out.dtype.element_ty)
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, acc.to(out.dtype.element_ty), there & (rn < N)[:, None])
