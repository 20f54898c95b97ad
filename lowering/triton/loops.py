"""The main loops over K blocks, each once: for the linears, of one weight or of experts.

A call of a jit function is inlined, so these are the kernels' own loops; a kernel brings its pointers and its epilogue.
The weight is the left operand: C^T [n, m] = W [n, k] x [m, k]^T.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.decode import bf16_codes, fp8_codes, int8_codes, signed_codes
from qpass.lowering.triton.parts import add_block, group_words
from qpass.lowering.triton.tile import packed_step


@triton.jit
def eight_bit_sums(
    inputs, weights, there, K, start, end, SPLITS: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Σ w x [BN, BM] over K blocks ``start``, ``start + SPLITS``, ... below ``end``: int32 of int8, float32 of E4M3.

    inputs: pointers [BK, BM] to block ``start``, read where ``there`` [1, BM]; weights: [BN, BK]. POLICY: of the
    cache for weights: evict_first where nobody reads them again.
    """
    SUM: tl.constexpr = tl.int32 if weights.dtype.element_ty == tl.int8 else tl.float32
    k = tl.arange(0, BK)
    acc = tl.zeros((BN, BM), SUM)
    for step in tl.range(start, end, SPLITS, num_stages=STAGES):
        if EVEN_K:
            w_tile = tl.load(weights, eviction_policy=POLICY)
            x_tile = tl.load(inputs, there, 0.0)
        else:
            w_tile = tl.load(weights, (k < K - step * BK)[None, :], 0.0, eviction_policy=POLICY)
            x_tile = tl.load(inputs, there & (k < K - step * BK)[:, None], 0.0)
        acc = tl.dot(w_tile, x_tile, acc, out_dtype=SUM)
        inputs += SPLITS * BK
        weights += SPLITS * BK
    return acc


@triton.jit
def four_bit_sums(
    inputs, words, meta, scale, own, there, K, rows, start, end,
    ORDER: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr, SPLITS: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, JOINED: tl.constexpr,
    ASM: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Σ (code - zero) · scale · x [BN, BM] over K blocks as above; GROUP 0: without scales, int32 of int8 inputs.

    inputs: pointers to the first part (``add_block``) of block ``start``; words: as ``packed_tile`` gives them for it.
    own [BN]: where the rows' words of groups begin in meta and scale. ORDER: of the layout; 16 times the codes if
    signed.
    """
    k = tl.arange(0, BK // 2 if JOINED else BK // 4)[:, None]
    acc = tl.zeros((BN, BM), tl.int32 if ORDER != "bf16" and GROUP == 0 else tl.float32)
    word0, word1, word2, word3 = group_words(meta + own, 0, 0, BK)
    for step in tl.range(start, end, SPLITS, num_stages=STAGES):
        tile = tl.load(words, eviction_policy=POLICY)
        group = own
        if GROUP:
            group = (step * BK) // GROUP * rows + own
            word0, word1, word2, word3 = group_words(meta + group, rows, GROUP, BK)
        if ORDER == "bf16":
            c0, c1, c2, c3 = bf16_codes(tile, word0, word1, word2, word3, BN, BK, ASM)
        elif ORDER == "signed":
            c0, c1, c2, c3 = signed_codes(tile, BN, BK, ASM)
        else:
            c0, c1, c2, c3 = int8_codes(tile, word0, word1, word2, word3, BN, BK, ASM)
        acc = add_block(acc, c0, c1, c2, c3, inputs, there, k, K - step * BK, word0, word1, word2, word3,
                        scale + group, rows, GROUP, BK, SCALE, JOINED, EVEN_K)  # fmt: skip
        inputs += SPLITS * BK
        words += SPLITS * packed_step(rows, BK, 8 if ASM else 4)
    return acc


@triton.jit
def fp8_block_sums(
    inputs, weights, x_scale, scale, inside, K, start, end, SPLITS: tl.constexpr, EVEN_K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Σ w x [BN, BM] of E4M3 over K blocks of 128 as above, the float32 sum of each times its two scales.

    x_scale: pointers [BM] to the scales of block 0, read where ``inside`` [BM]; scale: the tile's one for block 0.
    """
    k, there = tl.arange(0, 128), inside[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    for step in tl.range(start, end, SPLITS, num_stages=STAGES):
        if EVEN_K:
            w_tile = tl.load(weights, eviction_policy=POLICY)
            x_tile = tl.load(inputs, there, 0.0)
        else:
            w_tile = tl.load(weights, (k < K - step * 128)[None, :], 0.0, eviction_policy=POLICY)
            x_tile = tl.load(inputs, there & (k < K - step * 128)[:, None], 0.0)
        both = tl.load(x_scale + step, inside, 0.0) * tl.load(scale + step)
        acc += tl.dot(w_tile, x_tile) * both[None, :]
        inputs += SPLITS * 128
        weights += SPLITS * 128
    return acc


@triton.jit
def signed_fp8_sums(
    inputs, words, tables, choice, own, there, K, rows, start, end,
    GROUP: tl.constexpr, REAL: tl.constexpr, SPLITS: tl.constexpr, EVEN_K: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ASM: tl.constexpr, POLICY: tl.constexpr,
):  # fmt: skip
    """Σ byte x [BN, BM] of E4M3 over K blocks as above, of codes of a sign and three bits that ``tables`` makes bytes.

    inputs: pointers [BK / 2, BM] to the first half of block ``start``. own [BN]: where the rows' numbers of groups
    begin in ``choice``: rows of ``tables``, or with REAL scales of the sums of groups.
    """
    half = tl.arange(0, BK // 2)[:, None]
    acc = tl.zeros((BN, BM), tl.float32)
    near = tl.load(tables + own * 0)
    far = tl.load(tables + own * 0 + 1)
    near2, far2 = near, far
    for step in tl.range(start, end, SPLITS, num_stages=STAGES):
        tile = tl.load(words, eviction_policy=POLICY)
        left = K if EVEN_K else K - step * BK
        x_low = tl.load(inputs, there if EVEN_K else there & (half < left), 0.0)
        x_high = tl.load(inputs + BK // 2, there if EVEN_K else there & (half + BK // 2 < left), 0.0)
        group = (step * BK) // GROUP * rows + own
        if not REAL:
            chosen = tl.load(choice + group).to(tl.int32) * 2
            near, far = tl.load(tables + chosen), tl.load(tables + chosen + 1)
            near2, far2 = near, far
            if GROUP < BK:
                chosen2 = tl.load(choice + group + rows).to(tl.int32) * 2
                near2, far2 = tl.load(tables + chosen2), tl.load(tables + chosen2 + 1)
        low, high = fp8_codes(tile, near, far, near2, far2, BN, BK, ASM)
        if not REAL:
            acc = tl.dot(low, x_low, acc)
            acc = tl.dot(high, x_high, acc)
        elif GROUP < BK:  # each half of the block is a group
            acc += tl.dot(low, x_low) * tl.load(choice + group).to(tl.float32)[:, None]
            acc += tl.dot(high, x_high) * tl.load(choice + group + rows).to(tl.float32)[:, None]
        else:
            part = tl.dot(low, x_low)
            part = tl.dot(high, x_high, part)
            acc += part * tl.load(choice + group).to(tl.float32)[:, None]
        inputs += SPLITS * BK
        words += SPLITS * packed_step(rows, BK, 16 if ASM else 4)
    return acc
