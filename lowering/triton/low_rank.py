"""The second dot of a linear with a low-rank branch (LoRC): U [N, r] times V x [r, M], added before the result is
rounded. V x is a small linear of its own."""

import triton
import triton.language as tl


@triton.jit
def add_low_rank(
    result, branch, up, up_scale, rn, rm, N, M, RANK: tl.constexpr, PADDED: tl.constexpr, INT8: tl.constexpr
):  # fmt: skip
    """result [BN, BM] float32 + U (V x): branch [M, RANK] of a float dtype, up [N, RANK] of the same, or with INT8
    int8, exact in bfloat16, and up_scale float32 [N]. PADDED: RANK, up to a size that a dot can have."""
    r = tl.arange(0, PADDED)
    there = rn < N
    left = tl.load(up + rn[:, None] * RANK + r[None, :], there[:, None] & (r < RANK)[None, :], 0)
    spots = branch + rm.to(tl.int64)[None, :] * RANK + r[:, None]
    right = tl.load(spots, (rm < M)[None, :] & (r < RANK)[:, None], 0.0)
    part = tl.dot(left.to(right.dtype), right)
    if INT8:
        part *= tl.load(up_scale + rn, there, 0.0)[:, None]
    return result + part
