"""Rows of an integer-only program: (a sum, then) (RMSNorm or LayerNorm, then) codes or rows, in one visit."""

import triton
import triton.language as tl

from qpass.lowering.triton.integer_math import mul_shift, rsh_right
from qpass.lowering.triton.integer_steps import add, center, store_codes, unit_rows


@triton.jit
def integer_norm_kernel(
    x, k, y, ky, mantissa, shift, exponent, bias, bias_k, total, total_k, out, out_k, codes, zero, m, e, M, N,
    stride_x, stride_y, eps_mantissa, eps_exponent, root_n, places,
    ADD: tl.constexpr, NORM: tl.constexpr, CENTER: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    CODES: tl.constexpr, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, MANTISSA: tl.constexpr, R: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    """x, y int32 [M, N]; k, ky int32 [M]; mantissa, shift int32 [N], exponent [1]; bias [N] and [1].

    Gives total and total_k (ADD with NORM), and codes, zero, m, e (CODES) or rows out and out_k. Grid: M / R.
    """
    row, at = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, B)[None, :]
    live, inside = row < M, at < N
    there, far = live & inside, row.to(tl.int64)
    v, vk = tl.load(x + far * stride_x + at, there, 0), tl.load(k + row, live, 0)
    spots = far * N + at
    if ADD:
        v, vk = add(v, vk, tl.load(y + far * stride_y + at, there, 0), tl.load(ky + row, live, 0))
        if NORM:
            tl.store(total + spots, v, there)
            tl.store(total_k + row, vk, live)
    if CENTER:
        v, vk = center(v, vk, N, there)
    if NORM:
        v, vk = unit_rows(v, vk, eps_mantissa, eps_exponent, root_n, places)
    if WEIGHT:
        v = rsh_right(mul_shift(v, tl.load(mantissa + at, inside, 0)), tl.load(shift + at, inside, 0))
        vk += tl.load(exponent) - 15
    if BIAS:
        v, vk = add(v, vk, tl.load(bias + at + row * 0, there, 0), tl.load(bias_k) + row * 0)
    if CODES:
        store_codes(v, vk, codes, zero, m, e, row, spots, there, live, BITS, SYMMETRIC, MANTISSA)
    else:
        tl.store(out + spots, v, there)
        tl.store(out_k + row, vk, live)
