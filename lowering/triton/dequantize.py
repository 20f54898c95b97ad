"""4-bit weights of the pre-shuffled layout as a plain bfloat16 or E4M3 matrix, once, for a dense dot of many rows."""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import bf16_codes, fp8_codes, group_scale
from qpass.lowering.triton.parts import group_words
from qpass.lowering.triton.tile import packed_tile


@triton.jit
def dequantize_bf16_kernel(
    packed, meta, scale, out, N, K, rows,
    GROUP: tl.constexpr, SCALE: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """out [N, K] = bfloat16((code - zero) · scale), rounded once. Grid: tiles of N, K blocks. As for ``w4a16``."""
    pn, step = tl.program_id(0), tl.program_id(1)
    rn = pn * BN + tl.arange(0, BN)
    tile = tl.load(packed_tile(packed, pn * BN, step, rows, BN, BK, 8 if ASM else 4), eviction_policy="evict_first")
    group = rn
    if GROUP:
        group = (step * BK) // GROUP * rows + rn
    word0, word1, word2, word3 = group_words(meta + group, rows, GROUP, BK)
    c0, c1, c2, c3 = bf16_codes(tile, word0, word1, word2, word3, BN, BK, ASM)
    Q: tl.constexpr = BK // 4
    SIZE: tl.constexpr = GROUP if GROUP else BK
    k = step * Q * 4 + tl.arange(0, Q)[None, :]
    spots, there, scales = out + rn.to(tl.int64)[:, None] * K + k, (rn < N)[:, None], scale + group
    _store(spots, c0, group_scale(word0, scales, SCALE), there & (k < K))
    _store(spots + Q, c1, group_scale(word1, scales + Q // SIZE * rows, SCALE), there & (k + Q < K))
    _store(spots + 2 * Q, c2, group_scale(word2, scales + 2 * Q // SIZE * rows, SCALE), there & (k + 2 * Q < K))
    _store(spots + 3 * Q, c3, group_scale(word3, scales + 3 * Q // SIZE * rows, SCALE), there & (k + 3 * Q < K))


@triton.jit
def _store(spots, codes, scales, there):
    tl.store(spots, (codes.to(tl.float32) * scales[:, None]).to(spots.dtype.element_ty), there)


@triton.jit
def dequantize_fp8_kernel(
    packed, tables, choice, out, N, K, rows,
    GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """out [N, K] E4M3, exact: each group by its own table (``w4a8_fp8``). Grid: tiles of N, K blocks."""
    pn, step = tl.program_id(0), tl.program_id(1)
    rn = pn * BN + tl.arange(0, BN)
    tile = tl.load(packed_tile(packed, pn * BN, step, rows, BN, BK, 16 if ASM else 4), eviction_policy="evict_first")
    group = (step * BK) // GROUP * rows + rn
    first = tables + tl.load(choice + group).to(tl.int32) * 2
    second = tables + tl.load(choice + (group + rows if GROUP < BK else group)).to(tl.int32) * 2
    low, high = fp8_codes(
        tile, tl.load(first), tl.load(first + 1), tl.load(second), tl.load(second + 1), BN, BK, ASM
    )
    k = step * BK + tl.arange(0, BK // 2)
    spots, there = out + rn.to(tl.int64)[:, None] * K + k[None, :], (rn < N)[:, None]
    tl.store(spots, low, there & (k < K)[None, :])
    tl.store(spots + BK // 2, high, there & (k + BK // 2 < K)[None, :])
