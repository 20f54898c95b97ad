"""Ops of integer-only programs on a GPU: Triton kernels that give the bits of the meanings.

Which op is joined with which is said in ``JOINS``: a step and the requantization behind it are one visit to a row. What
has no provider here is its meaning, which Inductor compiles into as few kernels as ours would be.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpass.graph.program import Derived
from qpass.lowering import Provider
from qpass.lowering.cuda import integer_sums, integer_tiles, tiles, weights
from qpass.lowering.cuda.kernels import missing
from qpass.lowering.integer_calls import Calls, mode_of, steps
from qpass.lowering.triton.layout import padded_rows
from qpass.numerics.integer.norm import WIDEST

KINDS = {"relu": 0, "silu": 1, "quick_gelu": 1, "gelu": 2, "gelu_tanh": 3}
_ABOUT = "bit for bit the meaning, each row by itself and in registers"
_AS_MEANT = ("precise", "paper")  # modes that requantize alike


@functools.cache
def load() -> None:
    """Register the operators, which needs Triton."""
    importlib.import_module("qpass.lowering.cuda.integer_ops")


def _ops() -> Any:
    load()
    return torch.ops.qpass_cuda


_CALLS = Calls(_ops, KINDS)


def _mode(mode: str, modes: tuple[str, ...] = ("precise",)) -> str | None:
    return f"it computes mode {modes[0]}, not {mode}" if mode not in modes else missing()


def _wide(n: int) -> str | None:
    return f"it keeps rows of up to {integer_tiles.WIDEST_ROW} channels in registers, not {n}" if (
        n > integer_tiles.WIDEST_ROW) else None  # fmt: skip


def _row(x: Tensor, *rest: Any) -> str | None:
    return _wide(int(x.shape[-1])) or missing()


def _refuses_quantize(
    x: Tensor, k: Tensor, bits: int, symmetric: bool, mantissa: int = 15, mode: str = "precise"
) -> str | None:
    return _wide(int(x.shape[-1])) or _mode(mode, _AS_MEANT)


def _quantize(x: Tensor, k: Tensor, bits: int, symmetric: bool, mantissa: int = 15, mode: str = "precise") -> Any:
    return _ops().integer_quantize(x, k, bits, symmetric, mantissa)


def _refuses_linear(*args: Any) -> str | None:
    return missing()


def _linear(*args: Any, plain: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
    codes, zero, m, k, _, mantissa, shift, exponent, sums, bias, bias_exponent, up = args
    result: tuple[Tensor, Tensor] = _ops().integer_linear(
        codes, zero, m, k, plain, mantissa, shift, exponent, sums, bias, bias_exponent, counters, up
    )
    return result


def _pack_linear(*args: Any) -> dict[str, tuple[str, Derived]]:
    """Dense codes and counters; an argument that is a parameter is (name, meta tensor)."""
    name, codes = args[4]
    base, size = name.removesuffix(".codes"), tiles.counters(padded_rows(codes.shape[0]))
    counters = torch.empty(size, dtype=torch.int32, device="meta")
    return {
        "plain": (f"{base}.plain", Derived((name,), Tensor.contiguous, codes)),
        "counters": (f"{base}.counters", Derived((name,), functools.partial(weights.zeros, size=size), counters)),
    }


def _refuses_attention(*args: Any) -> str | None:
    q, keys, values, keep, mode = args[0], args[3], args[4], args[5], args[12] if len(args) > 12 else "precise"
    if keep is not None and (keep.dim() != 4 or keep.shape[1] != 1):
        return f"it takes masks [batch, 1, queries, keys], not {list(keep.shape)}"
    widest = max(int(q.shape[-1]), int(values.shape[-1]) - 2)
    if widest > integer_tiles.WIDEST_HEAD:
        return f"it takes heads of up to {integer_tiles.WIDEST_HEAD} channels, not {widest}"
    if int(q.shape[-1]) % 2 or int(values.shape[-1]) % 2:
        return "it takes heads of an even number of channels"
    length = keys.shape[2]
    if isinstance(length, int) and length >= integer_tiles.MOST_KEYS:
        return f"sums over {length} keys could overflow int32"
    return _mode(mode)


def _refuses_norm(x: Tensor, *rest: Any) -> str | None:
    n = int(x.shape[-1])
    return (f"a norm over {n} channels" if n > WIDEST else _wide(n)) or _mode(mode_of(rest))


def _refuses_activation(x: Tensor, k: Tensor, kind: str, *rest: Any) -> str | None:
    return f"it has no {kind}" if kind not in KINDS else _wide(int(x.shape[-1])) or _mode(mode_of(rest))


def _refuses_gated(x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, *rest: Any) -> str | None:
    return _refuses_activation(x, k, kind, *rest)


def _refuses_merge(x: Tensor, k: Tensor) -> str | None:
    tile = integer_tiles.merge_tile(int(x.shape[-2]), int(x.shape[-1]))
    return _wide(tile.rows * tile.width) or missing()


def _refuses_rotary(x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> str | None:
    if interleaved:
        return "it turns the two halves of a row, not neighbors"
    return _refuses_heads(x, k)


def _refuses_heads(x: Tensor, *rest: Any) -> str | None:
    if x.dim() != 4:
        return f"it takes rows of heads [batch, heads, tokens, channels], not {list(x.shape)}"
    return _row(x)


def _provider(name: str, refuses: Callable[..., str | None], call: Callable[..., Any], **more: Any) -> Provider:
    return Provider(f"cuda.{name}", more.pop("about", _ABOUT), refuses, call, **more)


_SWAPPED = f"up to {tiles.SOME} rows weights are the left operand, with split K; above, Inductor's int8 template"
_HEADS = "int8 dots for scores and for weighted values; each key is read twice, and no score leaves the registers"

PROVIDERS: dict[str, Provider] = {
    "integer_linear": _provider("integer_linear", _refuses_linear, _linear, about=_SWAPPED, prepare=_pack_linear),
    "integer_attention": _provider("integer_attention", _refuses_attention, _CALLS.attention, about=_HEADS,
                                   accumulators=integer_sums.attention),
    "integer_rms_norm": _provider("integer_norm", _refuses_norm, _CALLS.rms_norm),
    "integer_layer_norm": _provider("integer_norm", _refuses_norm, _CALLS.layer_norm),
    "integer_activation": _provider("integer_activation", _refuses_activation, _CALLS.activation),
    "integer_gated": _provider("integer_gated", _refuses_gated, _CALLS.gated, accumulators=integer_sums.gated),
    "integer_merge_heads": _provider("integer_merge_heads", _refuses_merge, _CALLS.plain("integer_merge_heads")),
    "integer_rotary": _provider("integer_rotary", _refuses_rotary, _CALLS.rotary),
    "integer_quantize": _provider("integer_quantize", _refuses_quantize, _quantize),
    "integer_pack": _provider("integer_pack", _refuses_heads, _CALLS.plain("integer_pack")),
    "integer_add": _provider("integer_add", _row, _CALLS.plain("integer_add")),
}

JOINS = steps("qpass_cuda")
