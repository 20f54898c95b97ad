"""Operators on bounds against operators on numbers, extreme ones first; and the same numbers in 64 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qpass.numerics.integer import (
    activation,
    attention,
    cache,
    embedding,
    exp2,
    linear,
    logits,
    norm,
    quantize,
    rotary,
    sampler,
)
from qpass.numerics.integer import rows as row_ops
from qpass.numerics.integer.dyadic import vector
from qpass.ranges.engine import Engine
from qpass.ranges.value import of, of_tensor
from tests.ranges.watch import Recorder, contained

TOP = 1 << 30
TABLE = torch.tensor(exp2.TABLE, dtype=torch.int32)
C = 32


def extreme_rows(rows: int, top: int = TOP) -> Tensor:
    """Rows of one size each, 0 to ``top``, and rows that hold bounds, powers of two and their neighbors."""
    sizes = 2 ** torch.randint(0, top.bit_length(), (rows, 1))
    x = (torch.rand(rows, C, dtype=torch.float64) * 2 - 1) * sizes
    x = x.to(torch.int64).clamp(-top, top)
    special = torch.tensor([top, -top, top - 1, 1 - top, 1, -1, 0, 1 << 15, (1 << 15) - 1, 1 << 28, (1 << 29) - 1])
    special = special.clamp(-top, top)
    x[0], x[1], x[2] = top, -top, 0
    x[3] = special[torch.randint(0, len(special), (C,))]
    for number, value in enumerate(special):
        x[4 + number] = value * torch.randint(-1, 2, (C,))
    return x.to(torch.int32)


def exponents(rows: int, span: int = 300) -> Tensor:
    k = torch.randint(-span, span + 1, (rows, 1), dtype=torch.int32)
    k[:4] = torch.tensor([[-span], [span], [0], [127]])
    return k


def codes(*shape: int, most: int = 127) -> Tensor:
    found = torch.randint(-most, most + 1, shape).to(torch.int8)
    found[..., 0, :] = most
    return found


ROWS = 48
X, K, Y, KY = extreme_rows(ROWS), exponents(ROWS), extreme_rows(ROWS), exponents(ROWS)
BOUND, SPAN = (-TOP, TOP), (-300, 300)
FEW = torch.randn(C) * torch.tensor([1e-3, 1.0, 30.0, 1e4]).repeat(C // 4)
VECTOR = vector(FEW)
LOG2E = vector(torch.tensor([1.442695], dtype=torch.float64))
W = codes(24, C)
KEYS = torch.cat((codes(2, 2, 9, 16), torch.randint(-64, 64, (2, 2, 9, 1)), torch.randint(-128, 128, (2, 2, 9, 1))), -1)
KEYS = KEYS.to(torch.int8)
Q = codes(2, 4, 3, 16)
KEEP = torch.ones(3, 9, dtype=torch.bool).tril(6)[None, None].expand(2, 1, 3, 9)
M = torch.randint(1 << 14, 1 << 15, (2, 4, 3, 1), dtype=torch.int32)
KQ = torch.randint(-300, 301, (2, 4, 3, 1), dtype=torch.int32)


def attended(q: Tensor, m: Tensor, k: Tensor, keys: Tensor, scales: Tensor, powers: Tensor, keep: Tensor,
             table: Tensor) -> Any:  # fmt: skip
    packed = torch.cat((keys, scales, powers), -1)
    return attention.attention(q, m, k, packed, packed, keep, table, 16714, 15, 8, 5 << 15)


def product(x: Tensor, zero: Tensor, m: Tensor, k: Tensor, w: Tensor, *scales: Tensor) -> Any:
    return linear.linear(x, zero, m, k, w, *scales, None, None, linear.room(C, 255, 127))


Case = tuple[Callable[..., Any], list[tuple[Tensor, tuple[int, int] | None] | Any]]
CASES: dict[str, Case] = {
    "normalize": (row_ops.normalize, [(X, BOUND), (K, SPAN)]),
    "add": (row_ops.add, [(X, BOUND), (K, SPAN), (Y, BOUND), (KY, SPAN)]),
    "align": (row_ops.align, [(X.reshape(4, 12, C), BOUND), (K.reshape(4, 12, 1), SPAN)]),
    "symmetric": (quantize.quantize_rows, [(X, BOUND), (K, SPAN), 8, True]),
    "asymmetric": (quantize.quantize_rows, [(X, BOUND), (K, SPAN), 8, False]),
    "four bits": (quantize.quantize_rows, [(X, BOUND), (K, SPAN), 4, False]),
    "pack": (cache.pack, [(X, BOUND), (K, SPAN)]),
    "rms_norm": (norm.rms_norm, [(X, BOUND), (K, SPAN), *((part, None) for part in VECTOR), 17180, 29]),
    "eps large": (norm.unit_rows, [(X, BOUND), (K, SPAN), 17180, -20]),
    "layer_norm": (norm.layer_norm, [(X, BOUND), (K, SPAN), *((part, None) for part in VECTOR), None, None, 17180, 29]),
    "rotary": (rotary.rotary, [(X, BOUND), (K, SPAN), (torch.randint(-16384, 16385, (C,)).to(torch.int16), None),
                               (torch.full((C,), 16384, dtype=torch.int16), None)]),
    "logits": (logits.logits, [(X, BOUND), (K, SPAN)]),
    "embedding": (embedding.embedding, [(torch.arange(24), (0, 23)), (W, None), (VECTOR[0][:24].contiguous(), None),
                                        (VECTOR[1][:24].contiguous(), None)]),
    "linear": (product, [(codes(ROWS, C), (-128, 127)), (torch.randint(-128, 128, (ROWS, 1)).int(), (-128, 127)),
                         (torch.full((ROWS, 1), 32767, dtype=torch.int32), (1 << 14, 32767)), (K, SPAN), (W, None),
                         *((part[:24].contiguous(), None) for part in VECTOR[:2]), (VECTOR[2], None),
                         (W.sum(1, dtype=torch.int32), None)]),
    "attention": (attended, [(Q, (-127, 127)), (M, (1 << 14, 32767)), (KQ, SPAN), (KEYS[..., :-2], (-127, 127)),
                             (KEYS[..., -2:-1], (-64, 63)), (KEYS[..., -1:], (-128, 127)), (KEEP, (0, 1)),
                             (TABLE, None)]),
    "sampler": (sampler.weights, [(torch.randint(-(1 << 24), (1 << 24) + 1, (8, 50)).int(), (-(1 << 24), 1 << 24)),
                                  (K[:8], SPAN), 23637, 14, (torch.tensor(sampler.TABLE), None)]),
    "draw": (sampler.draw, [(torch.randint(0, (1 << 24) + 1, (8, 50)), (0, 1 << 24)),
                            (torch.randint(0, 1 << 31, (8,)), (0, (1 << 31) - 1))]),
    "top k": (sampler.keep_top_k, [(torch.randint(0, (1 << 24) + 1, (8, 50)), (0, 1 << 24)), 7]),
    "top p": (sampler.keep_top_p, [(torch.randint(0, (1 << 24) + 1, (8, 50)), (0, 1 << 24)), 60000]),
    "scale": (row_ops.scale, [(X, BOUND), (K, SPAN), *((part, None) for part in VECTOR)]),
    "concat": (row_ops.concat, [(X, BOUND), (K, SPAN), (Y, BOUND), (KY, SPAN)]),
    **{kind: (activation.gated, [(X, BOUND), (K, SPAN), (Y, BOUND), (KY, SPAN), kind,
                                 *((part, None) for part in vector(FEW.abs())), (TABLE, None)])
       for kind in activation.SMOOTHED},
    **{kind: (activation.gated, [(X, BOUND), (K, SPAN), (Y, BOUND), (KY, SPAN), kind,
                                 *((part, None) for part in LOG2E), (TABLE, None)])
       for kind in ("silu", "quick_gelu", "gelu", "gelu_tanh", "relu")},
}  # fmt: skip


def proven(fn: Callable[..., Any], given: list[Any]) -> int:
    """Run ``fn`` on bounds and on numbers, given as (tensor, bound or None); how many ops were compared."""
    engine, recorder = Engine(), Recorder(shadow=True)
    abstract = []
    for arg in given:
        if not isinstance(arg, tuple):
            abstract.append(arg)
            continue
        tensor, bound = arg
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        abstract.append(engine.hold(meta, of(*bound) if bound else of_tensor(tensor)))
    engine.run(fn, *abstract)
    recorder.run(fn, *(arg[0] if isinstance(arg, tuple) else arg for arg in given))
    for seen in engine.seen.values():  # what run() has shown by not raising
        assert seen.width == 1 or -(1 << (seen.width - 1)) <= seen.lo <= seen.hi < 1 << (seen.width - 1)
    return contained(recorder.seen, engine.seen)


@pytest.mark.parametrize("name", CASES)
def test_what_happens_is_within_what_is_proven_and_is_the_same_in_64_bits(name: str) -> None:
    assert proven(*CASES[name]) > 3
