"""4-bit weights of the pre-shuffled layout as a plain bfloat16 or E4M3 matrix, once, for a dense dot of many rows."""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import bf16_codes, fp8_codes
from qpass.lowering.triton.tile import packed_tile


@triton.jit
def dequantize_bf16_kernel(
    packed, scale, zero, out, N, K, rows,
    GROUP: tl.constexpr, KW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """out [N, K] = bfloat16((code - zero) · scale), rounded once. Grid: tiles of N, K blocks."""
    pn, step = tl.program_id(0), tl.program_id(1)
    rn = pn * BN + tl.arange(0, BN)
    tile = tl.load(packed_tile(packed, pn * BN, step, rows, BN, BK, ASM), eviction_policy="evict_first")
    group = (step * BK) // GROUP * rows + rn
    second = group + rows if GROUP < BK else group
    zeros, zeros2 = tl.load(zero + group).to(tl.int32), tl.load(zero + second).to(tl.int32)
    low, high = bf16_codes(tile, zeros, zeros2, BN, BK, KW, ASM)
    k = step * BK + tl.arange(0, BK // 2)
    spots, there = out + rn.to(tl.int64)[:, None] * K + k[None, :], (rn < N)[:, None]
    low = low.to(tl.float32) * tl.load(scale + group).to(tl.float32)[:, None]
    high = high.to(tl.float32) * tl.load(scale + second).to(tl.float32)[:, None]
    tl.store(spots, low.to(out.dtype.element_ty), there & (k < K)[None, :])
    tl.store(spots + BK // 2, high.to(out.dtype.element_ty), there & (k + BK // 2 < K)[None, :])


@triton.jit
def dequantize_fp8_kernel(
    packed, tables, choice, out, N, K, rows,
    GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """out [N, K] E4M3, exact: each group by its own table (``w4a8_fp8``). Grid: tiles of N, K blocks."""
    pn, step = tl.program_id(0), tl.program_id(1)
    rn = pn * BN + tl.arange(0, BN)
    tile = tl.load(packed_tile(packed, pn * BN, step, rows, BN, BK, ASM), eviction_policy="evict_first")
    group = (step * BK) // GROUP * rows + rn
    first = tables + tl.load(choice + group).to(tl.int32) * 2
    second = tables + tl.load(choice + (group + rows if GROUP < BK else group)).to(tl.int32) * 2
    low, high = fp8_codes(
        tile, tl.load(first), tl.load(first + 1), tl.load(second), tl.load(second + 1), BN, BK, 4, ASM
    )
    k = step * BK + tl.arange(0, BK // 2)
    spots, there = out + rn.to(tl.int64)[:, None] * K + k[None, :], (rn < N)[:, None]
    tl.store(spots, low, there & (k < K)[None, :])
    tl.store(spots + BK // 2, high, there & (k + BK // 2 < K)[None, :])
