"""What one K block of 4-bit integers adds to a tile's sums: its four parts, in groups of one, two, four or more."""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import group_scale
from qpass.lowering.triton.tile import beside


@triton.jit
def group_words(meta, rows, GROUP: tl.constexpr, BK: tl.constexpr):
    """int32 [BN] of each part. meta: pointers to the first part's; other groups are ``rows`` further on."""
    word0 = tl.load(meta)
    word1, word2, word3 = word0, word0, word0
    if GROUP * 2 == BK:
        word2 = tl.load(meta + rows)
        word3 = word2
    elif GROUP * 4 == BK:
        word1 = tl.load(meta + rows)
        word2 = tl.load(meta + 2 * rows)
        word3 = tl.load(meta + 3 * rows)
    return word0, word1, word2, word3


@triton.jit
def add_block(
    acc, c0, c1, c2, c3, inputs, there, k, left, word0, word1, word2, word3, scales, rows,
    GROUP: tl.constexpr, BK: tl.constexpr, SCALE: tl.constexpr, JOINED: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """acc [BN, BM] + Σ over groups of scale · Σ over parts of code · input; with GROUP 0 without scales.

    inputs: pointers to the first part's [BK / 4, BM]; with JOINED to two parts'. left: how many of the block there are.
    """
    QUARTER: tl.constexpr = BK // 4
    zeros = tl.zeros(acc.shape, tl.int32 if c0.dtype == tl.int8 else tl.float32)
    if GROUP == 0:
        acc = _two(acc, c0, c1, inputs, there, k, left, QUARTER, JOINED, EVEN_K)
        acc = _two(acc, c2, c3, inputs + BK // 2, there, k + BK // 2, left, QUARTER, JOINED, EVEN_K)
    elif GROUP >= BK:
        part = _two(zeros, c0, c1, inputs, there, k, left, QUARTER, JOINED, EVEN_K)
        part = _two(part, c2, c3, inputs + BK // 2, there, k + BK // 2, left, QUARTER, JOINED, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word0, scales, SCALE)[:, None]
    elif GROUP * 2 == BK:
        part = _two(zeros, c0, c1, inputs, there, k, left, QUARTER, JOINED, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word0, scales, SCALE)[:, None]
        part = _two(zeros, c2, c3, inputs + BK // 2, there, k + BK // 2, left, QUARTER, JOINED, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word2, scales + rows, SCALE)[:, None]
    else:
        tl.static_assert(GROUP * 4 == BK and not JOINED, "a group is a part, two of them, or whole K blocks")
        part = _one(zeros, c0, inputs, there, k, left, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word0, scales, SCALE)[:, None]
        part = _one(zeros, c1, inputs + QUARTER, there, k + QUARTER, left, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word1, scales + rows, SCALE)[:, None]
        part = _one(zeros, c2, inputs + 2 * QUARTER, there, k + 2 * QUARTER, left, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word2, scales + 2 * rows, SCALE)[:, None]
        part = _one(zeros, c3, inputs + 3 * QUARTER, there, k + 3 * QUARTER, left, EVEN_K)
        acc += part.to(tl.float32) * group_scale(word3, scales + 3 * rows, SCALE)[:, None]
    return acc


@triton.jit
def _two(acc, first, second, inputs, there, k, left, QUARTER, JOINED: tl.constexpr, EVEN_K: tl.constexpr):
    """One dot of both where the hardware has dots of warp groups, which are waited for one by one."""
    if JOINED:
        acc = _one(acc, beside(first, second), inputs, there, k, left, EVEN_K)
    else:
        acc = _one(acc, first, inputs, there, k, left, EVEN_K)
        acc = _one(acc, second, inputs + QUARTER, there, k + QUARTER, left, EVEN_K)
    return acc


@triton.jit
def _one(acc, codes, inputs, there, k, left, EVEN_K: tl.constexpr):
    x = tl.load(inputs, there if EVEN_K else there & (k < left), 0.0)
    return tl.dot(codes.to(x.dtype), x, acc, out_dtype=acc.dtype)
