"""The operators of integer-only programs in qpass_cpu: their shapes for the compiler.

Each gives the bits of its namesake in ``qpass.numerics.integer``, for every row by itself, whatever the number of rows
and of threads. Rows are x int32 [..., n] and k int32 [..., 1], of any strides; codes are (int8, zero, m, k).

``integer_norm`` is RMSNorm or LayerNorm: ``norm`` holds the dyadic of n · eps, round(sqrt(n) · 2^places), places, and
whether the mean is taken off first. ``integer_linear`` takes weights as ``kernels.pack_int8_weight`` packs them, and a
table of ``pack_table``; ``integer_linears`` several of them, whose rows follow each other in its results.
``*_quantize`` and ``*_pack`` are an operator and the requantization behind it in one visit to each row, ``*_append``
puts its result behind the rows of a cache. ``integer_linears_heads`` gives queries, keys and values: codes, mantissa
and exponent of the first, turned; the caches with the new rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _like(x: Tensor, last: int, dtype: torch.dtype, inner: int = 1) -> Tensor:
    return x.new_empty((*x.shape[: x.dim() - inner], last), dtype=dtype)


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x, x.shape[-1], torch.int32), _like(x, 1, torch.int32)


def _codes(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(x, x.shape[-1], torch.int8), *(_like(x, 1, torch.int32) for _ in range(3))


def _to_rows(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _rows(x)


def _wider(a: Tensor, ka: Tensor, b: Tensor, kb: Tensor) -> tuple[Tensor, Tensor]:
    return _like(a, a.shape[-1] + b.shape[-1], torch.int32), _like(a, 1, torch.int32)


def _to_codes(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _codes(x)


def _to_both(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_rows(x), *_codes(x)


def _to_cache(x: Tensor, *rest: Any) -> Tensor:
    return _like(x, x.shape[-1] + 2, torch.int8)


def _merged(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x, x.shape[-2] * x.shape[-1], torch.int32, 2), _like(x, 1, torch.int32, 2)


def _merged_codes(x: Tensor, k: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, ...]:
    codes = _like(x, x.shape[-2] * x.shape[-1], torch.int8, 2)
    return codes, *(_like(x, 1, torch.int32, 2) for _ in range(3))


def _rotated(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x, x.shape[-1], torch.int32), torch.empty_like(k)


def _appended(past: Tensor, added: Tensor) -> Tensor:
    return past.new_empty((*past.shape[:2], past.shape[2] + added.shape[2], past.shape[3]))


def _grown(x: Tensor, *rest: Any) -> Tensor:
    return _appended(rest[-1], x)


def pack_table(
    block: int, mantissa: Tensor, shift: Tensor, exponent: Tensor, sums: Tensor, bias: Tensor | None = None,
    bias_exponent: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """What ``integer_linear`` knows of each channel: int32 [3 or 4 times channels, padded to blocks, and 2].

    mantissa, shift and sums of the weight's rows, with a bias its numbers, int32 [N]; then the exponents, int32 [1].
    """
    parts = [mantissa, shift, sums, *([] if bias is None else [bias])]
    padded = [torch.nn.functional.pad(part.to(torch.int32), (0, -part.numel() % block)) for part in parts]
    last = exponent if bias_exponent is None else bias_exponent
    return torch.cat([*padded, exponent.to(torch.int32), last.to(torch.int32)])


def _linear(codes, zero, m, k, w_packed, w_table, up, n):  # type: ignore[no-untyped-def]
    return _like(codes, n, torch.int32), k.new_empty(k.shape)


def _linears(codes, zero, m, k, w_packed, w_table, up, n):  # type: ignore[no-untyped-def]
    return [made for width in n for made in (_like(codes, width, torch.int32), k.new_empty(k.shape))]


def _linears_codes(codes, zero, m, k, w_packed, w_table, up, n, *rest):  # type: ignore[no-untyped-def]
    return _like(codes, n[0], torch.int8), *(_like(codes, 1, torch.int32) for _ in range(3))


def _linear_both(codes, zero, m, k, w_packed, w_table, up, n, *rest):  # type: ignore[no-untyped-def]
    numbers = [_like(codes, 1, torch.int32) for _ in range(4)]
    return _like(codes, n, torch.int32), numbers[0], _like(codes, n, torch.int8), *numbers[1:]


def _heads(codes, zero, m, k, w_packed, w_table, up, n, cos, sin, bits, key_bits, value_bits, keys, values):  # type: ignore[no-untyped-def]
    batch, length, _ = codes.shape
    d = keys.shape[3] - 2
    heads = (batch, n[0] // d, length)
    numbers = (codes.new_empty((*heads, 1), dtype=torch.int32) for _ in range(2))
    grown = (past.new_empty((*past.shape[:2], past.shape[2] + length, past.shape[3])) for past in (keys, values))
    return codes.new_empty((*heads, d)), *numbers, *grown


def _attention_codes(q, m, k, keys, values, *rest):  # type: ignore[no-untyped-def]
    batch, heads, queries, _ = q.shape
    numbers = (q.new_empty((batch, queries, 1), dtype=torch.int32) for _ in range(3))
    return q.new_empty((batch, queries, heads * (values.shape[-1] - 2))), *numbers


def _attention(q, m, k, keys, values, *rest):  # type: ignore[no-untyped-def]
    batch, heads, queries, _ = q.shape
    shapes = ((batch, queries, heads, last) for last in (values.shape[-1] - 2, 1))
    return tuple(q.new_empty(shape, dtype=torch.int32).transpose(1, 2) for shape in shapes)


FAKES = {
    "integer_quantize": _to_codes, "integer_pack": _to_cache, "integer_add": _to_rows, "integer_norm": _to_rows,
    "integer_norm_quantize": _to_codes, "integer_add_norm_quantize": _to_both, "integer_activation": _to_rows,
    "integer_activation_quantize": _to_codes, "integer_gated": _to_rows, "integer_gated_quantize": _to_codes,
    "integer_merge_heads": _merged, "integer_merge_heads_quantize": _merged_codes, "integer_rotary": _rotated,
    "integer_rotary_quantize": _to_codes, "integer_rotary_pack": _to_cache, "integer_logits": _to_rows,
    "integer_scale": _to_rows, "integer_concat": _wider,
    "cache_update": _appended, "integer_append": _grown, "integer_rotary_append": _grown,
    "integer_linear": _linear, "integer_linears": _linears, "integer_linears_gated_quantize": _linears_codes,
    "integer_linear_add_norm_quantize": _linear_both, "integer_linears_heads": _heads,
    "integer_attention": _attention, "integer_attention_quantize": _attention_codes,
}  # fmt: skip
"""Operator -> shapes of its results."""


def register() -> None:
    """Tell torch.compile the shapes. Once, after the library is loaded."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"qpass_cpu::{name}", fake)
