"""The operators of integer-only programs in qpass_cpu: their shapes for the compiler.

Each gives the bits of its namesake in ``qpass.numerics.integer``, for every row by itself, whatever the number of rows
and of threads. Rows are x int32 [..., n] and k int32 [..., 1], of any strides; codes are (int8, zero, m, k).

``integer_norm`` is RMSNorm or LayerNorm: ``norm`` holds the dyadic of n · eps, round(sqrt(n) · 2^places), places, and
whether the mean is taken off first. ``integer_linear`` takes weights as ``kernels.pack_int8_weight`` packs them.
``*_quantize`` and ``*_pack`` are an operator and the requantization behind it in one visit to each row, ``*_append``
puts its result behind the rows of a cache.
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


def _linear(codes, zero, m, k, w_packed, w_mantissa, w_shift, w_exponent, w_sum, bias, bias_exponent, up, n):  # type: ignore[no-untyped-def]
    return _like(codes, n, torch.int32), k.new_empty(k.shape)


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
    "cache_update": _appended, "integer_append": _grown, "integer_rotary_append": _grown,
    "integer_linear": _linear, "integer_attention": _attention,
}  # fmt: skip
"""Operator -> shapes of its results."""


def register() -> None:
    """Tell torch.compile the shapes. Once, after the library is loaded."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"qpass_cpu::{name}", fake)
