"""The tile of packed 4-bit words that one program reads at one step, and which output tile it computes."""

import triton
import triton.language as tl


@triton.jit
def packed_tile(packed, first_row, step, rows, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to 16 bytes a lane, [BN * BK / 32, WIDE]: of rows from ``first_row`` in K block ``step``.

    packed: for the decoders in assembly a layout's elements, int16 (WIDE 8) or int8 (16); int32 (4) for their twins.
    rows: of the weight, padded.
    """
    at = (tl.cast(step, tl.int64) * rows + first_row) * (BK * WIDE // 32)
    return packed + at + tl.arange(0, BN * BK // 32)[:, None] * WIDE + tl.arange(0, WIDE)[None, :]


@triton.jit
def packed_step(rows, BK: tl.constexpr, WIDE: tl.constexpr):
    """How far the next K block is."""
    return rows * (BK * WIDE // 32)


@triton.jit
def to_rows(elements, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, KW: tl.constexpr):
    """[BN * BK / 32, 32 / PARTS] elements in stored order -> [BN, BK / PARTS]. Free where lanes agree."""
    cut = elements.reshape(BN // 16, BK // 64, 8, 4, 16 // (PARTS * KW), 2, KW)
    return cut.permute(0, 5, 2, 1, 4, 3, 6).reshape(BN, BK // PARTS)


@triton.jit
def words_to_elements(words, shift, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, KW: tl.constexpr):
    """int32 words [BN * BK / 32, U], each shifted right by ``shift`` [KW] for its elements, as ``to_rows`` has them."""
    shifted = words[:, :, None] >> shift[None, None, :]
    return to_rows(shifted.reshape(BN * BK // 32, 32 // PARTS), BN, BK, PARTS, KW)


@triton.jit
def beside(left, right):
    """[R, C] twice -> [R, 2 C]. Free: the columns of a row are registers."""
    return tl.join(left, right).permute(0, 2, 1).reshape(left.shape[0], 2 * left.shape[1])


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP_N: tl.constexpr):
    """(row tile of N, tile of M): groups of GROUP_N weight tiles go through all of M, so that L2 holds them."""
    wide = GROUP_N * tiles_m
    group = program // wide
    first = group * GROUP_N
    size = tl.minimum(tiles_n - first, GROUP_N)
    return first + (program % wide) % size, (program % wide) // size
