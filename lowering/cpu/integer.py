"""Ops of integer-only programs by our own C++: the same bits as the meanings, row by row.

Which op is joined with which is said in ``JOINS``: a step and the requantization behind it are one visit to a row. What
a kernel adds up is in ``integer_sums``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpass.graph.program import Derived
from qpass.lowering import Join, Provider, Siblings
from qpass.lowering.cpu import integer_sums as sums_of
from qpass.lowering.cpu import kernels
from qpass.lowering.cpu.heads import join_heads
from qpass.lowering.cpu.kernels_integer import pack_table
from qpass.lowering.integer_calls import Calls, mode_of, steps
from qpass.numerics.integer.embedding import embedding
from qpass.numerics.integer.norm import WIDEST

KINDS = {
    "relu": 0, "silu": 1, "quick_gelu": 1, "gelu": 2, "gelu_tanh": 3, "smoothed_gelu": 4, "smoothed_gelu_tanh": 5,
}  # fmt: skip
_ABOUT = "bit for bit the meaning, each row by itself"


def _ops() -> Any:
    kernels.load()
    return torch.ops.qpass_cpu


_CALLS = Calls(_ops, KINDS)


def _always(*args: Any) -> str | None:
    return kernels.available()


def _mode(mode: str) -> str | None:
    return f"it computes mode precise, not {mode}" if mode != "precise" else kernels.available()


def _refuses_quantize(
    x: Tensor, k: Tensor, bits: int, symmetric: bool, mantissa: int = 15, mode: str = "precise"
) -> str | None:
    return f"it gives mantissas of 15 bits, not {mantissa}" if mantissa != 15 else _mode(mode)


def _quantize(x: Tensor, k: Tensor, bits: int, symmetric: bool, *rest: Any) -> Any:
    return _ops().integer_quantize(x, k, bits, symmetric)


def _linear(*args: Any, packed: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    codes, zero, m, k, w_codes, up = *args[:5], args[11]
    result: tuple[Tensor, Tensor] = _ops().integer_linear(codes, zero, m, k, packed, table, up, w_codes.shape[0])
    return result


def _pack_linear(*args: Any) -> dict[str, tuple[str, Derived]]:
    """Packed codes, and a table of what is known of each channel; an argument that is a parameter is (name, fake)."""
    name, codes = args[4]
    n, k = codes.shape
    base, blocks = name.removesuffix(".codes"), -(-n // kernels.BLOCK)
    sources = [given[0] for given in (*args[5:8], args[4], *args[9:11]) if given is not None]
    shape = (blocks, -(-k // kernels.INT8_PER_LANE), kernels.BLOCK, 4)
    packed = Derived((name,), kernels.pack_int8_weight, torch.empty(shape, dtype=torch.int8, device="meta"))
    length = (3 if args[9] is None else 4) * blocks * kernels.BLOCK + 2
    table = Derived(tuple(sources), _table, torch.empty(length, dtype=torch.int32, device="meta"))
    return {"packed": (f"{base}.packed", packed), "table": (f"{base}.channels", table)}


def _table(mantissa: Tensor, shift: Tensor, exponent: Tensor, codes: Tensor, *bias: Tensor) -> Tensor:
    return pack_table(kernels.BLOCK, mantissa, shift, exponent, codes.sum(1, dtype=torch.int32), *bias)


def _refuses_attention(*args: Any) -> str | None:
    keep, mode = args[5], args[12]
    if keep is not None and (keep.dim() != 4 or keep.shape[1] != 1):
        return f"it takes masks [batch, 1, queries, keys], not {list(keep.shape)}"
    return _mode(mode)


def _refuses_norm(x: Tensor, *rest: Any) -> str | None:
    return f"a norm over {x.shape[-1]} channels" if int(x.shape[-1]) > WIDEST else _mode(mode_of(rest))


def _refuses_activation(x: Tensor, k: Tensor, kind: str, *rest: Any) -> str | None:
    if kind not in KINDS:
        return f"it has no {kind}"
    return _mode(rest[-1])


def _refuses_gated(x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, *rest: Any) -> str | None:
    return f"it has no {kind}" if kind not in KINDS else _mode(rest[-1])


def _refuses_merge(x: Tensor, k: Tensor) -> str | None:
    return "it takes heads of two channels or more" if int(x.shape[-1]) < 2 else kernels.available()


def _refuses_rotary(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> str | None:
    if interleaved:
        return "it turns the two halves of a row, not neighbors"
    if {cos.dtype, sin.dtype} != {torch.int16}:
        return "it takes cos and sin of int16"
    return kernels.available()


def _refuses_cache(past: Tensor, added: Tensor) -> str | None:
    if past.dtype != torch.int8 or past.dim() != 4:
        return ""  # of a float cache, which the compiler joins with what is around it
    return None


def _update(past: Tensor, added: Tensor) -> Tensor:
    """By our kernel; without it ATen's, under a dimension more: Inductor turns a concatenation of four dimensions of
    bytes to channels-last, and takes wrong strides for it where ``past`` is empty (torch 2.13)."""
    if kernels.available() is None:
        return _ops().cache_update(past, added)  # type: ignore[no-any-return]
    return torch.cat((past[None], added[None]), -2)[0]


def _provider(name: str, refuses: Callable[..., str | None], call: Callable[..., Any], **more: Any) -> Provider:
    return Provider(f"cpu.{name}", more.pop("about", _ABOUT), refuses, call, **more)


_VNNI = (
    "VNNI dot products, with AMX its tiles from 9 rows on; the dyadic factors are applied to sums in registers; "
    "codes of less than 8 bits are read as int8"
)
_HEADS = "int8 scores and weighted values by VNNI; keys and values are read once for all query heads that share them"

PROVIDERS: dict[str, Provider] = {
    "cache_update": _provider("cache_update", _refuses_cache, _update, about="rows of bytes, copied"),
    "integer_embedding": Provider("inductor.gather", "its meaning, compiled", lambda *args: None, embedding),
    "integer_quantize": _provider("integer_quantize", _refuses_quantize, _quantize),
    "integer_linear": _provider("integer_linear", _always, _linear, about=_VNNI, prepare=_pack_linear,
                                accumulators=sums_of.linear),
    "integer_attention": _provider("integer_attention", _refuses_attention, _CALLS.attention, about=_HEADS,
                                   accumulators=sums_of.attention),
    "integer_rms_norm": _provider("integer_norm", _refuses_norm, _CALLS.rms_norm, accumulators=sums_of.norm),
    "integer_layer_norm": _provider("integer_norm", _refuses_norm, _CALLS.layer_norm, accumulators=sums_of.layer_norm),
    "integer_activation": _provider("integer_activation", _refuses_activation, _CALLS.activation,
                                    accumulators=sums_of.activation),
    "integer_gated": _provider("integer_gated", _refuses_gated, _CALLS.gated, accumulators=sums_of.activation),
    "integer_merge_heads": _provider("integer_merge_heads", _refuses_merge, _CALLS.plain("integer_merge_heads")),
    "integer_rotary": _provider("integer_rotary", _refuses_rotary, _CALLS.rotary),
    **{name: _provider(name, _always, _CALLS.plain(name))
       for name in ("integer_pack", "integer_add", "integer_concat", "integer_scale",
                    "integer_logits")},
}  # fmt: skip

_LINEARS = "qpass_cpu.integer_linears"

JOINS = (
    *steps("qpass_cpu"),
    Join("qpass_cpu.integer_rotary_pack", "qpass_cpu.cache_update", "qpass_cpu.integer_rotary_append", reads=(1,)),
    Join("qpass_cpu.integer_pack", "qpass_cpu.cache_update", "qpass_cpu.integer_append", reads=(1,)),
    Join("qpass_cpu.integer_attention", "qpass_cpu.integer_merge_heads_quantize",
         "qpass_cpu.integer_attention_quantize", through=("transpose", -3, -2)),
    *(Join("qpass_cpu.integer_linear", "qpass_cpu.integer_add_norm_quantize",
           "qpass_cpu.integer_linear_add_norm_quantize", reads=reads) for reads in ((0, 1), (2, 3))),
    Siblings("qpass_cpu.integer_linear", _LINEARS, shared=4),
    Join(_LINEARS, "qpass_cpu.integer_gated_quantize", f"{_LINEARS}_gated_quantize", reads=(0, 1, 2, 3)),
    join_heads,
)  # fmt: skip
