"""y = x Wᵀ on int8 codes of an integer-only program, few rows: exact int32 sums, then two dyadic factors.

As ``eight_bit``, with the weight as the left operand and split K; the epilogue is 15-bit products in int32:

    A = RSH(P · 2^up · mantissa_n, 15);   y = RSH(RSH(A, shift_n) · m, 15);   P = (X - zero) Wᵀ
"""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import mul_shift, rsh_right
from qpass.lowering.triton.loops import eight_bit_sums
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import tile_of


@triton.jit
def integer_linear_kernel(
    x, x_zero, x_m, x_k, weight, sums, mantissa, shift, exponent, out, out_k, workspace, counters, M, N, K, stride_x,
    stride_w, stride_out,
    ZERO: tl.constexpr, UP: tl.constexpr, SPLITS: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x int8 [M, K]; weight int8 [N, K]; x_zero, x_m, x_k int32 [M]; sums, mantissa, shift int32 [N], exponent [1]; out
    int32 [M, N], out_k [M]. Grid: tiles of N times tiles of M, SPLITS."""
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
            acc -= tl.load(sums + rows)[:, None] * tl.load(x_zero + rm, rm < M, 0)[None, :]
        acc = rsh_right(mul_shift(acc << UP, tl.load(mantissa + rows)[:, None]), tl.load(shift + rows)[:, None])
        acc = mul_shift(acc, tl.load(x_m + rm, rm < M, 0)[None, :])
        if pn == 0:
            tl.store(out_k + rm, tl.load(x_k + rm, rm < M, 0) + tl.load(exponent) + (UP - 30), rm < M)
        tl.store(out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None], acc, there & (rn < N)[:, None])
