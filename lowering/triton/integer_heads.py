"""Heads of an integer-only program: (rotary embedding, then) rows, codes, or rows of the cache; and heads merged.

The rows of [batch, heads, tokens, width] are read where a linear left them, whatever the strides, and written densely.
"""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import mul_shift, rsh_right
from qpass.lowering.triton.integer_steps import normalize, quantize, store_codes


@triton.jit
def integer_heads_kernel(
    x, k, cos, sin, out, codes, zero, m, e, M, H, T, N, x_b, x_h, x_t, k_b, k_h, k_t, cos_b, cos_t, sin_b, sin_t,
    ROTARY: tl.constexpr, CODES: tl.constexpr, CACHE: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
    MANTISSA: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """x int32 [., H, T, N]; k int32 [., H, T, 1]; cos, sin [., 1, T, N] in Q14. M rows, written as [M, N].

    Gives codes, zero, m, e (CODES), codes alone as rows of the cache, int8 [M, N + 2] (CACHE), or out.
    Grid: M / R.
    """
    row, at = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    live, inside = row < M, at < N
    there, batch, head, token = live & inside, (row // (H * T)).to(tl.int64), (row // T) % H, row % T
    base = x + batch * x_b + head.to(tl.int64) * x_h + token.to(tl.int64) * x_t
    v = tl.load(base + at, there, 0)
    vk = tl.load(k + batch * k_b + head.to(tl.int64) * k_h + token.to(tl.int64) * k_t, live, 0)
    if ROTARY:
        low = at < N // 2
        other = tl.load(base + tl.where(low, at + N // 2, at - N // 2), there, 0)
        c = tl.load(cos + batch * cos_b + token * cos_t + at, there, 0).to(tl.int32)
        s = tl.load(sin + batch * sin_b + token * sin_t + at, there, 0).to(tl.int32)
        v, vk = mul_shift(v, c) + mul_shift(tl.where(low, -other, other), s), vk - 1
    far = row.to(tl.int64)
    if CODES:
        store_codes(v, vk, codes, zero, m, e, row, far * N + at, there, live, BITS, SYMMETRIC, MANTISSA)
    elif CACHE:
        found, _, mantissa, exponent = quantize(v, vk, BITS, True, 8)
        # quantize gives the mantissa as 15 bits; the cache has its 8, less 192
        mantissa, exponent = (mantissa >> 7) - 192, tl.minimum(tl.maximum(exponent - 7, -128), 127)
        place = codes + far * (N + 2)
        tl.store(place + at, found.to(tl.int8), there)
        tl.store(place + N, mantissa.to(tl.int8), live)
        tl.store(place + N + 1, exponent.to(tl.int8), live)
    else:
        tl.store(out + far * N + at, v, there)


@triton.jit
def integer_merge_kernel(
    x, k, out, out_k, codes, zero, m, e, M, H, N, x_m, x_h, k_m, k_h,
    CODES: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """x int32 [M, H, N], k int32 [M, H]: the heads of a token at one exponent, [M, H · N]. R >= H. Grid: M."""
    row, head, at = tl.program_id(0), tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    live, there = head < H, (head < H) & (at < N)
    far = tl.cast(row, tl.int64)
    v = tl.load(x + far * x_m + head * x_h + at, there, 0)
    vk = tl.load(k + far * k_m + head * k_h, live, 0)
    v, vk = normalize(v, vk)
    common = tl.min(tl.where(live, vk, 127), 0, keep_dims=True)
    v = rsh_right(v, vk - common)
    spots = far * (H * N) + head * N + at
    if CODES:
        flat = tl.reshape(v, (1, R * B))
        places, inside = tl.reshape(spots, (1, R * B)), tl.reshape(there, (1, R * B))
        first = row + tl.zeros((1, 1), tl.int32)
        store_codes(flat, common, codes, zero, m, e, first, places, inside, first < M, BITS, SYMMETRIC, MANTISSA)
    else:
        tl.store(out + spots, v, there)
        tl.store(out_k + row + tl.zeros((1, 1), tl.int32), common)
