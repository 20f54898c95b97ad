"""The tile of packed 4-bit words that one program reads at one step, and which output tile it computes."""

import triton
import triton.language as tl


@triton.jit
def packed_tile(packed, first_row, step, rows, BN: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr):
    """Pointers to 16 bytes a lane, [BN * BK / 32, 16 int8 or 4 int32]: of rows from ``first_row`` in K block ``step``.

    packed: int8 for the decoders in assembly, int32 for their plain twins. rows: of the weight, padded.
    """
    WIDE: tl.constexpr = 16 if ASM else 4
    at = (tl.cast(step, tl.int64) * rows + first_row) * (BK * WIDE // 32)
    return packed + at + tl.arange(0, BN * BK // 32)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]


@triton.jit
def packed_step(rows, BK: tl.constexpr, ASM: tl.constexpr):
    """How far the next K block is."""
    return rows * (BK // 2 if ASM else BK // 8)


@triton.jit
def to_rows(elements, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, KW: tl.constexpr):
    """[BLOCK_N * BLOCK_K / 32, 16] elements in stored order -> [BLOCK_N, BLOCK_K / 2]. Free where lanes agree."""
    cut = elements.reshape(BLOCK_N // 16, BLOCK_K // 64, 8, 4, 8 // KW, 2, KW)
    return cut.permute(0, 5, 2, 1, 4, 3, 6).reshape(BLOCK_N, BLOCK_K // 2)


@triton.jit
def words_to_elements(words, shift, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, KW: tl.constexpr):
    """int32 [BLOCK_N, BLOCK_K / 2] of words [.., 4]: each word, shifted right by ``shift`` [4] for its elements."""
    shifted = words[:, :, None] >> shift[None, None, :]
    return to_rows(shifted.reshape(BLOCK_N * BLOCK_K // 32, 16), BLOCK_N, BLOCK_K, KW)


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP_N: tl.constexpr):
    """(row tile of N, tile of M): groups of GROUP_N weight tiles go through all of M, so that L2 holds them."""
    wide = GROUP_N * tiles_m
    group = program // wide
    first = group * GROUP_N
    size = tl.minimum(tiles_n - first, GROUP_N)
    return first + (program % wide) % size, (program % wide) // size
