"""The operators of integer-only programs, ``qpass_cuda::integer_*``: what ``integer`` puts in place of their meanings.

Each gives the bits of its namesake in ``qpass.numerics.integer``. Rows are x int32 [..., n] and k int32 [..., 1]; codes
are (int8, zero, m, k). ``norm`` holds the dyadic of n · eps, round(sqrt(n) · 2^places), places, and whether the mean is
taken off first. ``*_quantize`` and ``*_pack`` are an operator and the requantization behind it in one kernel. On CPU
tensors the kernels run in Triton's interpreter. Importing this needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from qpass.lowering.cuda import integer_tiles, tiles
from qpass.lowering.cuda.ops import _flat, _on_cpu, _Run
from qpass.lowering.triton.integer_activation import integer_activation_halves_kernel, integer_activation_kernel
from qpass.lowering.triton.integer_attention import integer_attention_kernel
from qpass.lowering.triton.integer_attention_parts import (
    integer_attention_parts_kernel,
    integer_attention_peaks_kernel,
)
from qpass.lowering.triton.integer_heads import integer_heads_kernel, integer_merge_kernel
from qpass.lowering.triton.integer_linear import integer_linear_kernel
from qpass.lowering.triton.integer_norm import integer_norm_kernel
from qpass.numerics.integer import rows as meaning
from qpass.numerics.integer.shift import mul_shift, rsh

Codes = tuple[Tensor, Tensor, Tensor, Tensor]
_PLAIN = {"CODES": False, "BITS": 8, "SYMMETRIC": True, "MANTISSA": 15}


def _launch(kernel: Any, grid: tuple[Any, ...], x: Tensor, args: tuple[Any, ...], warps: int, **constants: Any) -> None:
    """Run a kernel where ``x`` is: on its GPU, or in the interpreter, which knows no warps."""
    if x.is_cuda:
        wrap_triton(kernel)[grid](*args, **constants, num_warps=warps)
    else:
        _on_cpu(kernel, x)[grid](*args, **constants)


def _exponents(x: Tensor, k: Tensor) -> Tensor:
    return k.expand(*x.shape[:-1], 1).reshape(-1).contiguous()


def _codes_like(x: Tensor, shape: tuple[Any, ...]) -> Codes:
    """Empty codes of ``shape``, and their three numbers."""
    zero, m, k = (torch.empty((*shape[:-1], 1), dtype=torch.int32, device=x.device) for _ in range(3))
    return torch.empty(shape, dtype=torch.int8, device=x.device), zero, m, k


def _rows_like(x: Tensor, shape: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    out = torch.empty(shape, dtype=torch.int32, device=x.device)
    return out, torch.empty((*shape[:-1], 1), dtype=torch.int32, device=x.device)


def _codes(bits: int, symmetric: bool, mantissa: int) -> dict[str, Any]:
    return {"CODES": True, "BITS": bits, "SYMMETRIC": symmetric, "MANTISSA": mantissa}


class _Norm:
    """One call of ``integer_norm_kernel``: what is added, what is normalized, and what comes out."""

    def __init__(self, x: Tensor, k: Tensor) -> None:
        self.x, self.k, self.shape = _flat(x), _exponents(x, k), tuple(x.shape)
        self.y, self.ky, self.step = self.x, self.k, 0
        self.weight: tuple[Tensor, ...] = (self.k, self.k, self.k)
        self.bias = (self.k, self.k)
        self.eps = (0, 0, 0, 0)
        self.flags = {"ADD": False, "NORM": False, "CENTER": False, "WEIGHT": False, "BIAS": False}

    def add(self, y: Tensor, ky: Tensor) -> _Norm:
        self.y, self.ky, self.step = _flat(y), _exponents(y, ky), y.shape[-1]
        self.flags["ADD"] = True
        return self

    def norm(
        self, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
        bias_exponent: Tensor | None, norm: list[int],
    ) -> _Norm:  # fmt: skip
        self.flags |= {"NORM": True, "CENTER": bool(norm[4])}
        self.eps = (norm[0], norm[1], norm[2], norm[3])
        if mantissa is not None and shift is not None and exponent is not None:
            self.weight, self.flags["WEIGHT"] = (mantissa, shift, exponent), True
        if bias is not None and bias_exponent is not None:
            self.bias, self.flags["BIAS"] = (bias, bias_exponent), True
        return self

    def run(self, **codes: Any) -> tuple[Tensor, ...]:
        """The sum if a norm is taken of it, then codes or rows."""
        x, (count, n) = self.x, self.x.shape
        both = self.flags["ADD"] and self.flags["NORM"]
        total = _rows_like(x, self.shape) if both else (self.k, self.k)
        found = _codes_like(x, self.shape) if codes else _rows_like(x, self.shape)
        rows, wide = ((self.k, self.k), found) if codes else (found, (self.k,) * 4)
        tile = integer_tiles.row_tile(n, interpreted=not x.is_cuda)
        args = (x, self.k, self.y, self.ky, *self.weight, *self.bias, *total, *rows, *wide, count, n, n, self.step,
                *self.eps)  # fmt: skip
        constants = self.flags | (codes or _PLAIN) | {"R": tile.rows, "B": tile.width}
        _launch(integer_norm_kernel, ((count + tile.rows - 1) // tile.rows,), x, args, tile.warps, **constants)
        return (*total, *found) if both else tuple(found)


@triton_op("qpass_cuda::integer_quantize", mutates_args=())
def integer_quantize(
    x: Tensor, k: Tensor, bits: int, symmetric: bool, mantissa: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of rows: the row's least and greatest number, one division, rounding about the zero point."""
    a, b, c, d = _Norm(x, k).run(**_codes(bits, symmetric, mantissa))
    return a, b, c, d


@triton_op("qpass_cuda::integer_add", mutates_args=())
def integer_add(x: Tensor, k: Tensor, y: Tensor, ky: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two rows."""
    a, b = _Norm(x, k).add(y, ky).run()
    return a, b


@triton_op("qpass_cuda::integer_norm", mutates_args=())
def integer_norm(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, norm: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """RMSNorm or LayerNorm of rows."""
    a, b = _Norm(x, k).norm(mantissa, shift, exponent, bias, bias_exponent, norm).run()
    return a, b


@triton_op("qpass_cuda::integer_norm_quantize", mutates_args=())
def integer_norm_quantize(
    x: Tensor, k: Tensor, mantissa: Tensor | None, shift: Tensor | None, exponent: Tensor | None, bias: Tensor | None,
    bias_exponent: Tensor | None, norm: list[int], bits: int, symmetric: bool, code_mantissa: int = 15,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes of normalized rows."""
    call = _Norm(x, k).norm(mantissa, shift, exponent, bias, bias_exponent, norm)
    a, b, c, d = call.run(**_codes(bits, symmetric, code_mantissa))
    return a, b, c, d


@triton_op("qpass_cuda::integer_add_norm_quantize", mutates_args=())
def integer_add_norm_quantize(
    x: Tensor, k: Tensor, y: Tensor, ky: Tensor, mantissa: Tensor | None, shift: Tensor | None,
    exponent: Tensor | None, bias: Tensor | None, bias_exponent: Tensor | None, norm: list[int], bits: int,
    symmetric: bool, code_mantissa: int = 15,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum of two rows, and codes of its norm."""
    call = _Norm(x, k).add(y, ky).norm(mantissa, shift, exponent, bias, bias_exponent, norm)
    a, b, c, d, e, f = call.run(**_codes(bits, symmetric, code_mantissa))
    return a, b, c, d, e, f


def _activation(
    x: Tensor, k: Tensor, up: Tensor | None, k_up: Tensor | None, kind: int, mantissa: Tensor, shift: Tensor,
    exponent: Tensor, table: Tensor, **codes: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    flat, ks, shape = _flat(x), _exponents(x, k), tuple(x.shape)
    gated = up is not None and k_up is not None
    other, other_k = (_flat(up), _exponents(up, k_up)) if up is not None and k_up is not None else (flat, ks)
    found = _codes_like(x, shape) if codes else _rows_like(x, shape)
    rows, wide = ((ks, ks), found) if codes else (found, (ks,) * 4)
    (count, n), tile = flat.shape, integer_tiles.row_tile(flat.shape[1], interpreted=not x.is_cuda)
    args = (flat, ks, other, other_k, mantissa, shift, exponent, table, *rows, *wide, count, n, n, n)
    constants = (codes or _PLAIN) | {"KIND": kind, "GATED": gated, "EACH": mantissa.shape[0] > 1}
    grid = ((count + tile.rows - 1) // tile.rows,)
    kernel = integer_activation_halves_kernel if tile.halved else integer_activation_kernel
    _launch(kernel, grid, x, args, tile.warps, **constants, R=tile.rows, B=tile.width)
    return tuple(found)


@triton_op("qpass_cuda::integer_activation", mutates_args=())
def integer_activation(
    x: Tensor, k: Tensor, kind: int, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of x · h(x); kind 0 to 3: relu, sigmoid, gelu, gelu_tanh."""
    a, b = _activation(x, k, None, None, kind, mantissa, shift, exponent, table)
    return a, b


@triton_op("qpass_cuda::integer_activation_quantize", mutates_args=())
def integer_activation_quantize(
    x: Tensor, k: Tensor, kind: int, mantissa: Tensor, shift: Tensor, exponent: Tensor, table: Tensor, bits: int,
    symmetric: bool, code_mantissa: int = 15,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes of x · h(x)."""
    codes = _codes(bits, symmetric, code_mantissa)
    a, b, c, d = _activation(x, k, None, None, kind, mantissa, shift, exponent, table, **codes)
    return a, b, c, d


@triton_op("qpass_cuda::integer_gated", mutates_args=())
def integer_gated(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: int, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x · h(x) · up."""
    a, b = _activation(x, k, up, k_up, kind, mantissa, shift, exponent, table)
    return a, b


@triton_op("qpass_cuda::integer_gated_quantize", mutates_args=())
def integer_gated_quantize(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: int, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor, bits: int, symmetric: bool, code_mantissa: int = 15,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes of x · h(x) · up."""
    codes = _codes(bits, symmetric, code_mantissa)
    a, b, c, d = _activation(x, k, up, k_up, kind, mantissa, shift, exponent, table, **codes)
    return a, b, c, d


def _heads(
    x: Tensor, k: Tensor, angles: tuple[Tensor, Tensor] | None, *, cache: bool = False, bits: int = 8, **codes: Any
) -> tuple[Tensor, ...]:
    """Rows of heads [B, H, T, n] of any strides whose channels are neighbors."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    k = k.expand(*x.shape[:-1], 1)
    batch, heads, tokens, n = x.shape
    cos, sin = (x, x) if angles is None else (part.expand(batch, 1, tokens, n) for part in angles)
    cos, sin = (part if part.stride(-1) == 1 else part.contiguous() for part in (cos, sin))
    shape, count, tile = tuple(x.shape), batch * heads * tokens, integer_tiles.row_tile(n, interpreted=not x.is_cuda)
    found: tuple[Tensor, ...]
    if cache:
        found = (torch.empty((batch, heads, tokens, n + 2), dtype=torch.int8, device=x.device),)
        out, wide = k, (*found, k, k, k)
    elif codes:
        found = _codes_like(x, shape)
        out, wide = k, found
    else:
        found = (torch.empty(shape, dtype=torch.int32, device=x.device),)
        out, wide = found[0], (k, k, k, k)
    args = (x, k, cos, sin, out, *wide, count, heads, tokens, n, *x.stride()[:3], *k.stride()[:3],
            cos.stride(0), cos.stride(2), sin.stride(0), sin.stride(2))  # fmt: skip
    constants = {**_PLAIN, "BITS": bits} | codes | {"ROTARY": angles is not None, "CACHE": cache}
    grid = ((count + tile.rows - 1) // tile.rows,)
    _launch(integer_heads_kernel, grid, x, args, tile.warps, **constants, R=tile.rows, B=tile.width)
    return found


@triton_op("qpass_cuda::integer_rotary", mutates_args=())
def integer_rotary(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated rows of heads; cos and sin int16 or int32 [B or 1, 1, T or 1, n]."""
    return _heads(x, k, (cos, sin))[0], k - 1


@triton_op("qpass_cuda::integer_rotary_quantize", mutates_args=())
def integer_rotary_quantize(
    x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, bits: int, symmetric: bool, code_mantissa: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of rotated rows."""
    a, b, c, d = _heads(x, k, (cos, sin), **_codes(bits, symmetric, code_mantissa))
    return a, b, c, d


@triton_op("qpass_cuda::integer_pack", mutates_args=())
def integer_pack(x: Tensor, k: Tensor, bits: int) -> Tensor:
    """Rows of heads as they lie in the cache, int8 [B, H, T, n + 2]."""
    return _heads(x, k, None, cache=True, bits=bits)[0]


@triton_op("qpass_cuda::integer_rotary_pack", mutates_args=())
def integer_rotary_pack(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, bits: int) -> Tensor:
    """Rotated rows as they lie in the cache."""
    return _heads(x, k, (cos, sin), cache=True, bits=bits)[0]


def _merge(x: Tensor, k: Tensor, **codes: Any) -> tuple[Tensor, ...]:
    heads, n = x.shape[-2:]
    x, k = x.reshape(-1, heads, n), k.expand(*x.shape[:-1], 1).reshape(-1, heads, 1)
    x = x if x.stride(-1) == 1 else x.contiguous()
    return _merge_flat(x, k, heads, n, **codes)


def _merge_flat(x: Tensor, k: Tensor, heads: int, n: int, **codes: Any) -> tuple[Tensor, ...]:
    shape, tile = (x.shape[0], heads * n), integer_tiles.merge_tile(heads, n)
    found = _codes_like(x, shape) if codes else _rows_like(x, shape)
    rows, wide = ((k, k), found) if codes else (found, (k,) * 4)
    args = (x, k, *rows, *wide, x.shape[0], heads, n, x.stride(0), x.stride(1), k.stride(0), k.stride(1))
    _launch(integer_merge_kernel, (x.shape[0],), x, args, tile.warps, **(codes or _PLAIN), R=tile.rows, B=tile.width)
    return tuple(found)


@triton_op("qpass_cuda::integer_merge_heads", mutates_args=())
def integer_merge_heads(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., H, D] with an exponent a head to [..., H · D] with one."""
    a, b = _merge(x, k)
    return a.view(*x.shape[:-2], a.shape[-1]), b.view(*x.shape[:-2], 1)


@triton_op("qpass_cuda::integer_merge_heads_quantize", mutates_args=())
def integer_merge_heads_quantize(
    x: Tensor, k: Tensor, bits: int, symmetric: bool, code_mantissa: int = 15
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of merged heads."""
    a, b, c, d = _merge(x, k, **_codes(bits, symmetric, code_mantissa))
    b, c, d = (part.view(*x.shape[:-2], 1) for part in (b, c, d))
    return a.view(*x.shape[:-2], a.shape[-1]), b, c, d


@triton_op("qpass_cuda::integer_linear", mutates_args={"counters"})
def integer_linear(
    codes: Tensor, zero: Tensor | None, m: Tensor, k: Tensor, weight: Tensor, mantissa: Tensor, shift: Tensor,
    exponent: Tensor, sums: Tensor | None, bias: Tensor | None, bias_exponent: Tensor | None, counters: Tensor,
    up: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of x Wᵀ + b from codes: exact sums of int8 products, a dyadic factor a channel and one a row."""
    flat, out_features = _flat(codes), weight.shape[0]
    bucket = tiles.current(flat.shape[0])
    if codes.is_cuda and bucket not in (tiles.FEW, tiles.SOME) and codes.shape[-1] % 8 == out_features % 8 == 0:
        total = torch.ops.aten._int_mm.default(flat, weight.t())
        if zero is not None and sums is not None:
            total = total - zero.reshape(-1, 1) * sums
        out = mul_shift(rsh(mul_shift(total << up, mantissa), shift), m.reshape(-1, 1))
        found = k + exponent + (up - 30)
    else:
        row = (zero, m.contiguous(), k.contiguous())
        out, found = _few_rows(flat, row, weight, (mantissa, shift, exponent, sums), counters, up)
    out = out.view(*codes.shape[:-1], out_features)
    if bias is None or bias_exponent is None:
        return out, found
    if out_features > integer_tiles.WIDEST_ROW:
        return meaning.add(out, found, bias.expand_as(out), bias_exponent.expand_as(found))
    call = _Norm(out, found).add(bias.expand_as(out), bias_exponent.expand_as(found))
    a, b = call.run()
    return a, b


def _few_rows(
    flat: Tensor, row: tuple[Tensor | None, Tensor, Tensor], weight: Tensor,
    channel: tuple[Tensor, Tensor, Tensor, Tensor | None], counters: Tensor, up: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """row: zero, m, k; channel: mantissa, shift, exponent, sums."""
    (zero, m, k), (mantissa, shift, exponent, sums) = row, channel
    run = _Run(flat, weight.shape[0], 128, tiles.EIGHT_BIT, torch.int32, "integer_linear")
    out = torch.empty(run.m, run.n, dtype=torch.int32, device=flat.device)
    found, there = torch.empty_like(k), zero is not None and sums is not None
    run.of(integer_linear_kernel, flat)(
        flat, zero if there else m, m, k, weight, sums if there else mantissa, mantissa, shift, exponent, out, found,
        run.workspace, counters, run.m, run.n, run.k, run.k, run.k, run.n, ZERO=there, UP=up, BK=128,
    )  # fmt: skip
    return out, found


def _even(cache: Tensor) -> bool:
    """Whether each row is known to begin at an even byte; a dense cache of an even width is made so."""
    return all(isinstance(step, int) and step % 2 == 0 for step in cache.stride()[:3])


@triton_op("qpass_cuda::integer_attention", mutates_args=())
def integer_attention(
    q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, causal: bool, table: Tensor,
    scale_mantissa: int, scale_exponent: int, up: int, clip: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rows of softmax(scale · q kᵀ) v over a cache of codes, [B, Hq, T, D], stored token by token."""
    batch, heads, tokens, width = q.shape
    shared, length, v_width = keys.shape[1], keys.shape[2], values.shape[-1] - 2
    q, m, k = (part.contiguous() for part in (q, m, k))
    keys, values = (part if part.stride(-1) == 1 and _even(part) else part.contiguous() for part in (keys, values))
    group, out = heads // shared, q.new_empty((batch, tokens, heads, v_width), dtype=torch.int32)
    out_k = q.new_empty((batch, tokens, heads, 1), dtype=torch.int32)
    mask = q if keep is None else keep.expand(batch, 1, tokens, length)
    steps = (0, 0, 0) if keep is None else (mask.stride(0), mask.stride(2), mask.stride(3))
    pairs = batch * shared
    tile = integer_tiles.attention_tile(group * tokens, width, v_width, pairs if isinstance(pairs, int) else shared)
    units = [step // 2 for part in (keys, values) for step in part.stride()[:3]]
    grid: tuple[Any, ...] = ((group * tokens + tile.rows - 1) // tile.rows, pairs)
    sizes: dict[str, Any] = {
        "D": width, "DV": v_width, "G": group, "UP": up, "CAUSAL": causal, "KEEP": keep is not None, "UNIT": 2,
        "BM": tile.rows, "BS": tile.keys, "BD": tile.width,
    }  # fmt: skip
    where, scale = (shared, tokens, length, *units, *steps), (scale_mantissa, scale_exponent)
    sums: tuple[Tensor, ...] = ()
    if tile.parts > 1:
        sizes |= {"PARTS": tile.parts, "SHARE": tile.share}
        grid = (*grid, tile.parts)
        sums = _spaces(q, tile, grid)
        first = (q, keys, values, mask, sums[0], sums[-1], *where)
        _launch(integer_attention_peaks_kernel, grid, q, first, tile.warps, **sizes)
    kernel = integer_attention_parts_kernel if sums else integer_attention_kernel
    args = (q, m, k, keys, values, mask, table, *sums, out, out_k, *where, *scale)
    _launch(kernel, grid, q, args, tile.warps, **sizes, CLIP=clip, BV=tile.v_width)
    return out.transpose(1, 2), out_k.transpose(1, 2)


def _spaces(q: Tensor, tile: integer_tiles.AttentionTile, grid: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """What programs that share keys leave each other: peaks, sums, totals and counters, not initialized."""
    lead = (grid[1], grid[0])
    sizes = ((*lead, tile.parts, 3, tile.rows), (*lead, tile.parts, 2, tile.rows, tile.v_width),
             (*lead, tile.parts, 2, tile.rows), lead)  # fmt: skip
    kinds = (torch.int32, torch.int32, torch.int64, torch.int32)
    return tuple(q.new_empty(size, dtype=kind) for size, kind in zip(sizes, kinds))
