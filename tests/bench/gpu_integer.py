"""What the GPU benchmark measures of integer-only programs: each kernel on rows of a layer, and its op's meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.integer import PROVIDERS
from qpass.lowering.triton.layout import padded_rows
from qpass.numerics.integer.dyadic import fit_one, vector
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.linear import room


@dataclass(frozen=True)
class Layer:
    """Sizes: hidden and inner channels, query and key heads, channels of a head, tokens in the cache."""

    hidden: int
    inner: int
    heads: int
    key_heads: int
    width: int
    past: int


FULL, TINY = Layer(4096, 14336, 32, 8, 128, 4096), Layer(64, 96, 2, 1, 16, 20)


@dataclass(frozen=True)
class One:
    """One kernel: the op, its arguments, what was packed, and the bytes that have to be moved."""

    op: str
    args: tuple[Any, ...]
    packed: dict[str, Tensor]
    bytes: int

    def call(self) -> Any:
        """By our kernel."""
        return PROVIDERS[self.op].call(*self.args, **self.packed)

    def right(self) -> bool:
        """Whether the kernel gives the meaning's bits, computed on the CPU, and takes these arguments at all."""
        args = [arg.cpu() if isinstance(arg, Tensor) else arg for arg in self.args]
        want = ops.REGISTRY[self.op].meaning(*args)
        pairs = zip([want] if isinstance(want, Tensor) else want, _parts(self.call()), strict=True)
        return PROVIDERS[self.op].refuses(*self.args) is None and all(torch.equal(one, two.cpu()) for one, two in pairs)


def _parts(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def cases(layer: Layer, tokens: int, device: str) -> dict[str, One]:
    """By name, for ``tokens`` new tokens of one sequence."""
    made: dict[str, Callable[[Layer, int, str], One]] = {
        "quantize": _quantize, "add": _add, "norm": _norm, "gated": _gated, "linear": _linear, "attention": _attention}
    return {name: one(layer, tokens, device) for name, one in made.items()}


def _rows(tokens: int, n: int, device: str) -> tuple[Tensor, Tensor]:
    x = torch.randint(-(1 << 28), 1 << 28, (tokens, n), dtype=torch.int32, device=device)
    return x, torch.full((tokens, 1), 26, dtype=torch.int32, device=device)


def _vector(n: int, device: str) -> tuple[Tensor, ...]:
    return tuple(part.to(device) for part in vector(torch.rand(n, dtype=torch.float64) + 0.5))


def _quantize(layer: Layer, tokens: int, device: str) -> One:
    return One("integer_quantize", (*_rows(tokens, layer.hidden, device), 8, False), {}, 5 * tokens * layer.hidden)


def _add(layer: Layer, tokens: int, device: str) -> One:
    rows = (*_rows(tokens, layer.hidden, device), *_rows(tokens, layer.hidden, device))
    return One("integer_add", rows, {}, 12 * tokens * layer.hidden)


def _norm(layer: Layer, tokens: int, device: str) -> One:
    args = (*_rows(tokens, layer.hidden, device), *_vector(layer.hidden, device), *fit_one(layer.hidden * 1e-5))
    return One("integer_rms_norm", (*args, "precise"), {}, 8 * tokens * layer.hidden)


def _gated(layer: Layer, tokens: int, device: str) -> One:
    table = torch.tensor(TABLE, dtype=torch.int32, device=device)
    rows = (*_rows(tokens, layer.inner, device), *_rows(tokens, layer.inner, device))
    args = (*rows, "silu", *_vector(1, device), table, "precise")
    return One("integer_gated", args, {}, 12 * tokens * layer.inner)


def _linear(layer: Layer, tokens: int, device: str) -> One:
    n, k = layer.inner, layer.hidden
    codes, weight = (torch.randint(-127, 128, (rows, k), dtype=torch.int8, device=device) for rows in (tokens, n))
    zero, m, e = (torch.full((tokens, 1), value, dtype=torch.int32, device=device) for value in (3, 20000, 30))
    sums = weight.sum(1, dtype=torch.int32)
    args = (codes, zero, m, e, weight, *_vector(n, device), sums, None, None, room(k, 255))
    counters = torch.zeros(tiles.counters(padded_rows(n)), dtype=torch.int32, device=device)
    return One("integer_linear", args, {"plain": weight, "counters": counters}, n * k + tokens * (k + 4 * n))


def _attention(layer: Layer, tokens: int, device: str) -> One:
    length, d = layer.past + tokens, layer.width
    q = torch.randint(-127, 128, (1, layer.heads, tokens, d), dtype=torch.int8, device=device)
    m, k = (torch.full((1, layer.heads, tokens, 1), value, dtype=torch.int32, device=device) for value in (20000, 20))
    keys, values = (torch.randint(-127, 128, (1, layer.key_heads, length, d + 2), dtype=torch.int8, device=device)
                    for _ in range(2))  # fmt: skip
    for cache in (keys, values):
        cache[..., -1] = cache[..., -1] % 4 + 10
    keep = torch.ones(1, 1, tokens, length, dtype=torch.bool, device=device).tril(layer.past)
    table = torch.tensor(TABLE, dtype=torch.int32, device=device)
    args = (q, m, k, keys, values, keep, False, table, *fit_one(1.44 * d**-0.5), 8, 0, "precise")
    return One("integer_attention", args, {}, 2 * layer.key_heads * length * (d + 2) + 5 * q.numel())
