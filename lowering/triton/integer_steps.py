"""Steps on rows of integer-only programs that are in registers: x int32 [R, B], zeros behind a row, and k int32 [R, 1].

Each gives the bits of its namesake in ``qpass.numerics.integer``.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import isqrt, msb, msb_wide, mul_shift, rsh, rsh_by, rsh_right, rsh_wide


@triton.jit
def normalize(x, k):
    """The largest |x| of a row at bit 28."""
    return normalize_to(x, k, tl.max(tl.abs(x), 1, keep_dims=True))


@triton.jit
def normalize_to(x, k, largest):
    """As ``normalize``, where the largest |x| is known."""
    top = msb(largest) - 28
    wanted = tl.where(largest == 0, 127, tl.minimum(k - top, 127))
    return rsh(x, tl.where(largest == 0, 0, tl.maximum(top, k - 127))), wanted


@triton.jit
def add(a, ka, b, kb):
    """The sum of two rows at the coarser of their normalized exponents."""
    a, ka = normalize(a, ka)
    b, kb = normalize(b, kb)
    k = tl.minimum(ka, kb)
    return rsh_right(a, ka - k) + rsh_right(b, kb - k), k


@triton.jit
def center(x, k, n, there):
    """Each row less its mean. there: which elements are of the row."""
    x, k = normalize(x, k)
    total = tl.sum(x.to(tl.int64), 1, keep_dims=True) + (tl.cast(n, tl.int64) << 30)
    mean = (total + n // 2) // n - (1 << 30)
    return tl.where(there, x - mean.to(tl.int32), 0), k


@triton.jit
def unit_rows(x, k, eps_mantissa, eps_exponent, root_n, places):
    """x / sqrt(mean(x²) + eps)."""
    x, k = normalize(x, k)
    x15 = rsh_by(x, 14)
    square = x15 * x15
    low, high = tl.sum(square & 0xFFFF, 1, keep_dims=True), tl.sum(square >> 16, 1, keep_dims=True)
    v = (high.to(tl.int64) << 16) + low.to(tl.int64)
    left = 2 * (k - 14).to(tl.int64) - eps_exponent
    over = tl.maximum(left - 44, 0)
    over += over & 1
    eps = v * 0 + eps_mantissa
    v = tl.maximum(rsh_wide(v, over) + rsh_wide(eps, tl.maximum(over - left, -44)), 1)
    even = msb_wide(v) - 30
    even += even & 1
    root = tl.maximum(isqrt(rsh_wide(v, even)), 1)
    inverse = (((1 << 30) + (root >> 1)) // root).to(tl.int32)
    factor = rsh_by(inverse * root_n, 15)
    return mul_shift(x, factor), 14 + ((even + over) >> 1).to(tl.int32) + places


@triton.jit
def _ceil_shift(v, k):
    right, left = tl.minimum(tl.maximum(k, 0), 31), tl.minimum(tl.maximum(-k, 0), 31)
    return (-((-v) >> right)) << left


@triton.jit
def row_scale(extent, MOST: tl.constexpr, MANTISSA: tl.constexpr, G: tl.constexpr):
    """Of a range of at least 1: (m, e, 1/m scaled, pre-shift, final shift). G: 14 + the bits of MOST."""
    before = msb(extent) - 14
    UNIT: tl.constexpr = ((1 << G) + MOST - 1) // MOST
    u = _ceil_shift(extent, before) * UNIT
    drop = msb(u) - (MANTISSA - 1)
    m = _ceil_shift(u, drop)
    full = m >> MANTISSA
    m, drop = m >> full, drop + full
    inverse = ((1 << (MANTISSA + 14)) + (m >> 1)) // m
    return m, drop + before - G, inverse, before, drop + (MANTISSA + 14) - G


@triton.jit
def extremes(x, SYMMETRIC: tl.constexpr):
    """What decides a row's scale: its least and its greatest number, or 0 and its largest |x|."""
    if SYMMETRIC:
        high = tl.max(tl.abs(x), 1, keep_dims=True)
        low = high * 0
    else:
        low, high = tl.min(x, 1, keep_dims=True), tl.max(x, 1, keep_dims=True)
    return low, high


@triton.jit
def code_scale(low, high, k, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr):
    """Of ``extremes``: zero, m, k int32 [R, 1], and what ``codes_of`` takes (DI-MatMul's requantization of a row)."""
    if SYMMETRIC:
        MOST: tl.constexpr = (1 << (BITS - 1)) - 1
        m, e, inverse, before, after = row_scale(tl.maximum(high, 1), MOST, MANTISSA, 14 + BITS - 1)
        zero = m * 0
    else:
        SPAN: tl.constexpr = (1 << BITS) - 1
        low = tl.minimum(tl.maximum(low, 1 - (1 << 30)), 0)
        extent = tl.maximum(tl.maximum(high, 0) - low, 1)
        m, e, inverse, before, after = row_scale(extent, SPAN, MANTISSA, 14 + BITS)
        zero = rsh(rsh(-low, before) * inverse, after)
        zero = tl.minimum(tl.maximum(zero, 0), SPAN) - (128 if BITS == 8 else 0)
    UP: tl.constexpr = 15 - MANTISSA
    return zero, m << UP, k - e + UP, inverse, before, after


@triton.jit
def codes_of(x, zero, inverse, before, after, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Codes int32 [R, B] that fit int8, by ``code_scale``."""
    codes = rsh(rsh(x, before) * inverse, after)
    if SYMMETRIC:
        MOST: tl.constexpr = (1 << (BITS - 1)) - 1
        codes = tl.minimum(tl.maximum(codes, -MOST), MOST)
    else:
        SPAN: tl.constexpr = (1 << BITS) - 1
        OFFSET: tl.constexpr = 128 if BITS == 8 else 0
        codes = tl.minimum(tl.maximum(codes + (zero + OFFSET), 0), SPAN) - OFFSET
    return codes


@triton.jit
def quantize(x, k, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr):
    """Codes int32 [R, B], and zero, m, k int32 [R, 1]."""
    low, high = extremes(x, SYMMETRIC)
    zero, m, k, inverse, before, after = code_scale(low, high, k, BITS, SYMMETRIC, MANTISSA)
    return codes_of(x, zero, inverse, before, after, BITS, SYMMETRIC), zero, m, k


@triton.jit
def store_codes(x, k, codes, zero, m, e, row, spots, there, live, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
                MANTISSA: tl.constexpr):  # fmt: skip
    """Quantize rows and store them: codes at ``spots`` where ``there``, the three numbers of ``row`` where ``live``."""
    found, point, mantissa, exponent = quantize(x, k, BITS, SYMMETRIC, MANTISSA)
    tl.store(codes + spots, found.to(tl.int8), there)
    tl.store(zero + row, point, live)
    tl.store(m + row, mantissa, live)
    tl.store(e + row, exponent, live)


@triton.jit
def store_half_codes(left, right, k, codes, zero, m, e, row, first, second, left_there, right_there, live,
                     BITS: tl.constexpr, SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr):  # fmt: skip
    """As ``store_codes``, of rows in two halves at ``first`` and ``second``."""
    low, high = extremes(left, SYMMETRIC)
    right_low, right_high = extremes(right, SYMMETRIC)
    point, mantissa, exponent, inverse, before, after = code_scale(
        tl.minimum(low, right_low), tl.maximum(high, right_high), k, BITS, SYMMETRIC, MANTISSA
    )
    tl.store(codes + first, codes_of(left, point, inverse, before, after, BITS, SYMMETRIC).to(tl.int8), left_there)
    tl.store(codes + second, codes_of(right, point, inverse, before, after, BITS, SYMMETRIC).to(tl.int8), right_there)
    tl.store(zero + row, point, live)
    tl.store(m + row, mantissa, live)
    tl.store(e + row, exponent, live)
