"""y = x ((code - zero) · scale)ᵀ + b: 4-bit weights, 16-bit inputs, bfloat16 dots with float32 sums.

The weight is the left operand, from registers: C^T [n, m] = W [n, k] x [m, k]^T. Codes less their zero point are exact
in bfloat16; a group's scale multiplies the sum of its products in float32 (GROUP: K block or half of one), so a weight
is never rounded. Split K is deterministic (``split_k``).
"""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import bf16_codes
from qpass.lowering.triton.split_k import all_parts
from qpass.lowering.triton.tile import packed_step, packed_tile, tile_of


@triton.jit
def w4a16_kernel(
    x, packed, scale, zero, bias, out, workspace, counters, M, N, K, stride_x, stride_out, rows,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_K: tl.constexpr, KW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """x [M, K] bfloat16 (any float without ASM); packed words; scale of a float dtype, zero uint8, [K / GROUP, rows];
    out [M, N]. Grid: tiles of N times tiles of M, SPLITS. rows: N padded; GROUP: BK / 2, BK, a multiple, or >= K."""
    program, split = tl.program_id(0), tl.program_id(1)
    pn, pm = tile_of(program, tl.cdiv(M, BM), tl.cdiv(N, BN), 8)
    rn, rm = pn * BN + tl.arange(0, BN), pm * BM + tl.arange(0, BM)
    half = tl.arange(0, BK // 2)[:, None]
    inputs = x + rm.to(tl.int64)[None, :] * stride_x + split * BK + half
    there = (rm < M)[None, :]
    words = packed_tile(packed, pn * BN, split, rows, BN, BK, ASM)
    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(split, tl.cdiv(K, BK), SPLITS, num_stages=STAGES):
        tile = tl.load(words, eviction_policy="evict_first")
        left = K if EVEN_K else K - step * BK
        x_low = tl.load(inputs, there if EVEN_K else there & (half < left), 0.0)
        x_high = tl.load(inputs + BK // 2, there if EVEN_K else there & (half + BK // 2 < left), 0.0)
        group = (step * BK) // GROUP * rows + rn
        zeros = tl.load(zero + group).to(tl.int32)
        scales = tl.load(scale + group).to(tl.float32)
        if GROUP < BK:  # each half of the block is a group
            zeros2 = tl.load(zero + group + rows).to(tl.int32)
            scales2 = tl.load(scale + group + rows).to(tl.float32)
            low, high = bf16_codes(tile, zeros, zeros2, BN, BK, KW, ASM)
            acc += tl.dot(low.to(x_low.dtype), x_low) * scales[:, None]
            acc += tl.dot(high.to(x_high.dtype), x_high) * scales2[:, None]
        else:
            low, high = bf16_codes(tile, zeros, zeros, BN, BK, KW, ASM)
            part = tl.dot(low.to(x_low.dtype), x_low)
            part = tl.dot(high.to(x_high.dtype), x_high, part)
            acc += part * scales[:, None]
        inputs += SPLITS * BK
        words += SPLITS * packed_step(rows, BK, ASM)
    if SPLITS > 1:
        acc, mine = all_parts(acc, workspace, counters, program, split, SPLITS, BN, BM)
    else:
        mine = True
    if mine:
        if HAS_BIAS:
            acc += tl.load(bias + rn, rn < N, 0.0).to(tl.float32)[:, None]
        spots = out + rm.to(tl.int64)[None, :] * stride_out + rn[:, None]
        tl.store(spots, acc.to(out.dtype.element_ty), there & (rn < N)[:, None])
