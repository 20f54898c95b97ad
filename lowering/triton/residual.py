"""The residual of a decoder block, added to the tile of a linear before it is stored."""

import triton
import triton.language as tl


@triton.jit
def add_residual(result, residual, rn, rm, stride, N, there, OUT: tl.constexpr):
    """result [BN, BM] float32, rounded to OUT, + residual [M, N] of OUT at the rows rm and columns rn, in float32.

    Stored in an OUT of 16 bits that has the bits of a linear and an addition behind it.
    """
    spots = residual + rm.to(tl.int64)[None, :] * stride + rn[:, None]
    return result.to(OUT).to(tl.float32) + tl.load(spots, there & (rn < N)[:, None], 0.0).to(tl.float32)
