"""The arithmetic of integer-only programs: RSH(a, k) = floor((a + 2^(k-1)) / 2^k), a left shift for k < 0.

Every function gives the bits of its namesake in ``qpass.numerics.integer``. There is no float in any of them, and no
shift by more than the width, which a GPU does not define.
"""

import triton
import triton.language as tl

OCTAVES = tl.constexpr(1 << 20)  # 32 octaves in Q15, where 2^-z is 0


@triton.jit
def rsh(a, k):
    """RSH(a, k) of int32, k int32 of any sign."""
    carry = (a >> tl.minimum(tl.maximum(k - 1, 0), 31)) & (k > 0).to(tl.int32)
    return ((a >> tl.minimum(tl.maximum(k, 0), 31)) + carry) << tl.minimum(tl.maximum(-k, 0), 31)


@triton.jit
def rsh_right(a, k):
    """RSH(a, k) of int32, k >= 0."""
    carry = (a >> tl.minimum(tl.maximum(k - 1, 0), 31)) & (k > 0).to(tl.int32)
    return (a >> tl.minimum(k, 31)) + carry


@triton.jit
def rsh_wide(a, k):
    """RSH(a, k) of int64, k int64 of any sign."""
    carry = (a >> tl.minimum(tl.maximum(k - 1, 0), 63)) & (k > 0).to(tl.int64)
    return ((a >> tl.minimum(tl.maximum(k, 0), 63)) + carry) << tl.minimum(tl.maximum(-k, 0), 63)


@triton.jit
def rsh_by(a, K: tl.constexpr):
    """RSH(a, K) for a K above 0 that is known."""
    return (a >> K) + ((a >> (K - 1)) & 1)


@triton.jit
def mul_shift(a, b):
    """RSH(a · b, 15) of int32, |b| < 2^16."""
    return (a >> 15) * b + rsh_by((a & 32767) * b, 15)


@triton.jit
def mul_high(a, b):
    """RSH(a · b, 30) of int32, |a|, |b| <= 2^29."""
    product = a.to(tl.int64) * b.to(tl.int64)
    return ((product + (1 << 29)) >> 30).to(tl.int32)


@triton.jit
def msb(v):
    """floor(log2 v) of int32 v >= 1, by halves; 0 for 0."""
    found = v * 0
    for step in tl.static_range(5):
        by = (v >= (1 << (16 >> step))).to(tl.int32) * (16 >> step)
        v, found = v >> by, found + by
    return found


@triton.jit
def msb_wide(v):
    """floor(log2 v) of int64 v >= 1; 0 for 0."""
    high = v >> 31
    above = high > 0
    return tl.where(above, msb(high.to(tl.int32)) + 31, msb((v & 0x7FFFFFFF).to(tl.int32))).to(tl.int64)


@triton.jit
def isqrt(v):
    """floor(sqrt(v)) of int64, 0 <= v < 2^32, one bit a step."""
    root, rest = v * 0, v
    for step in tl.static_range(16):
        trial = ((root << 1) + (1 << (15 - step))) << (15 - step)
        fits = (rest >= trial).to(tl.int64)
        root, rest = root + (fits << (15 - step)), rest - fits * trial
    return root


@triton.jit
def to_q15(u, shift):
    """RSH(u, shift) of u >= 0, but at most 2^20."""
    left = tl.minimum(tl.maximum(-shift, 0), 20)
    first = tl.minimum(left, 10)
    wide = tl.minimum(rsh_right(u, tl.maximum(shift, 0)), OCTAVES)
    wide = tl.minimum(wide << first, OCTAVES)
    return tl.minimum(wide << (left - first), OCTAVES)


@triton.jit
def exp2_negative(z, table, there):
    """round(2^15 · 2^(-z / 2^15)), z Q15 from 0 to 2^30. table: int32 [33] in memory, which L1 keeps."""
    index = (z & 32767) >> 10
    high, low = tl.load(table + index, there, 0), tl.load(table + index + 1, there, 0)
    return rsh_right(high - rsh_by((high - low) * (z & 1023), 10), z >> 15)
