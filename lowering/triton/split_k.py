"""Split K with a fix-up inside the kernel: the program of a tile that comes last adds all parts, in their order.

The sum does not depend on who comes when, so results are equal from run to run. Counters are zero before and after.
"""

import triton
import triton.language as tl


@triton.jit
def all_parts(acc, workspace, counters, tile, split, SPLITS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr):
    """(the sum of all parts, whether this program is the one to use it).

    acc: [BN, BM] of this program. workspace: [tiles, SPLITS, BN, BM] of acc's dtype. counters: int32 [tiles].
    """
    spots = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
    base = workspace + tile.to(tl.int64) * (SPLITS * BN * BM)
    tl.store(base + split * (BN * BM) + spots, acc, cache_modifier=".cg")
    tl.debug_barrier()  # the parts of all threads are stored before one of them says so
    arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
    last = arrived == SPLITS - 1
    total = acc
    if last:
        total = tl.load(base + spots, cache_modifier=".cg")
        for part in range(1, SPLITS):
            total += tl.load(base + part * (BN * BM) + spots, cache_modifier=".cg")
        tl.store(counters + tile, 0)
    return total, last
