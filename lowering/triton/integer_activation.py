"""Rows of an integer-only program through an activation, plain or times a second row, then codes or rows: one visit."""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import exp2_negative, mul_high, mul_shift, rsh_by, to_q15
from qpass.lowering.triton.integer_steps import normalize, normalize_to, store_codes, store_half_codes

RELU, SIGMOID, GELU, GELU_TANH = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def _sigmoid(z, negative, table, there):
    """sigmoid(t) in Q15 from |t| log2(e) in Q15, by the branch whose exponential is at most 1."""
    small = exp2_negative(z, table, there)
    bottom = small + 32768
    top = tl.where(negative, small, 32768).to(tl.uint32)  # its product with 2^15 is below 2^31
    return (((top << 15) + (bottom >> 1).to(tl.uint32)) // bottom.to(tl.uint32)).to(tl.int32)


@triton.jit
def _gelu_argument(size, k, C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr):
    """|t(x)| log2(e) in Q15, |x| at most 6."""
    a = tl.minimum(to_q15(size, k - 12), 6 << 12)
    square = rsh_by(a * a, 12)
    coarse = rsh_by(square, 2)
    slope = C0 + rsh_by(square * C1, 14) + rsh_by(rsh_by(coarse * coarse, 16) * C2, 15)
    return rsh_by(rsh_by(a * slope, 14) * 11819, 9)


@triton.jit
def _activated(x, k, mantissa, shift, exponent, table, there, KIND: tl.constexpr):
    """x · h(x) of normalized rows; mantissa and shift are of a channel, [1, B] or [1, 1]."""
    if KIND == RELU:
        v = tl.maximum(x, 0)
    else:
        size = tl.abs(x)
        if KIND == SIGMOID:
            z = to_q15(mul_shift(size, mantissa), k + exponent + shift - 30)
        elif KIND == GELU:
            z = _gelu_argument(size, k, 13070, 2412, -10603)
        else:
            z = _gelu_argument(size, k, 13073, 2338, 0)
        v = mul_shift(x, _sigmoid(z, x < 0, table, there))
    return v


@triton.jit
def integer_activation_kernel(
    x, k, up, k_up, mantissa, shift, exponent, table, out, out_k, codes, zero, m, e, M, N, stride_x, stride_up,
    KIND: tl.constexpr, GATED: tl.constexpr, EACH: tl.constexpr, CODES: tl.constexpr, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """x, up int32 [M, N]; k, k_up int32 [M]; mantissa, shift int32 [N] (EACH) or [1], exponent [1]; table int32 [33].

    Gives codes, zero, m, e (CODES) or rows out and out_k. Grid: M / R.
    """
    row, at = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    live, inside = row < M, at < N
    there, far = live & inside, row.to(tl.int64)
    spots = far * N + at
    v, vk = tl.load(x + far * stride_x + at, there, 0), tl.load(k + row, live, 0)
    channel = at if EACH else at * 0
    factor, places = tl.load(mantissa + channel, inside, 0), tl.load(shift + channel, inside, 0)
    v, vk = normalize(v, vk)
    v = _activated(v, vk, factor, places, tl.load(exponent), table, there, KIND)
    if GATED:
        other, other_k = normalize(tl.load(up + far * stride_up + at, there, 0), tl.load(k_up + row, live, 0))
        v, vk = mul_high(v, other), vk + other_k - 30
    if CODES:
        store_codes(v, vk, codes, zero, m, e, row, spots, there, live, BITS, SYMMETRIC, MANTISSA)
    else:
        tl.store(out + spots, v, there)
        tl.store(out_k + row, vk, live)


@triton.jit
def _normalized_halves(x, k, first, second, left_there, right_there, row, live):
    """Both halves of rows, by the largest number of either."""
    left, right = tl.load(x + first, left_there, 0), tl.load(x + second, right_there, 0)
    largest, found = tl.max(tl.maximum(tl.abs(left), tl.abs(right)), 1, keep_dims=True), tl.load(k + row, live, 0)
    left, wanted = normalize_to(left, found, largest)
    right, _ = normalize_to(right, found, largest)
    return left, right, wanted


@triton.jit
def integer_activation_halves_kernel(
    x, k, up, k_up, mantissa, shift, exponent, table, out, out_k, codes, zero, m, e, M, N, stride_x, stride_up,
    KIND: tl.constexpr, GATED: tl.constexpr, EACH: tl.constexpr, CODES: tl.constexpr, BITS: tl.constexpr,
    SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """``integer_activation_kernel`` of long rows: one half after the other, so that what both need never lives at once.

    The loop is what keeps them apart: without it the compiler begins both, and spills registers.
    """
    HALF: tl.constexpr = B // 2
    row, left_at = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, HALF)[None, :]
    right_at = left_at + HALF
    live, far = row < M, row.to(tl.int64)
    left_there, right_there = live & (left_at < N), live & (right_at < N)
    start = far * stride_x
    left, right, vk = _normalized_halves(x, k, start + left_at, start + right_at, left_there, right_there, row, live)
    for half in tl.range(2, loop_unroll_factor=1):
        at = left_at + half * HALF
        channel = at if EACH else at * 0
        factor, places = tl.load(mantissa + channel, at < N, 0), tl.load(shift + channel, at < N, 0)
        done = _activated(left, vk, factor, places, tl.load(exponent), table, live & (at < N), KIND)
        left, right = right, done
    if GATED:
        start = far * stride_up
        first, second, other_k = _normalized_halves(
            up, k_up, start + left_at, start + right_at, left_there, right_there, row, live
        )
        left, right, vk = mul_high(left, first), mul_high(right, second), vk + other_k - 30
    first, second = far * N + left_at, far * N + right_at
    if CODES:
        store_half_codes(left, right, vk, codes, zero, m, e, row, first, second, left_there, right_there, live,
                         BITS, SYMMETRIC, MANTISSA)  # fmt: skip
    else:
        tl.store(out + first, left, left_there)
        tl.store(out + second, right, right_there)
        tl.store(out_k + row, vk, live)
