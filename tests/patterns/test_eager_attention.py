from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason
from .test_attention import KV, MASK, Q, repeat


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float | None, upcast: bool = True) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.3
    if cap is not None:
        scores = scores / cap
        scores = torch.tanh(scores)
        scores = scores * cap
    if mask is not None:
        scores = scores + mask
    wide = torch.float32 if upcast else None
    return torch.matmul(F.softmax(scores, dim=-1, dtype=wide).to(q.dtype), v)


def test_change() -> None:
    half = [torch.ones(shape).to(torch.bfloat16) for shape in (Q, KV, KV, MASK)]
    assert change(lambda q, k, v, mask: attend(q, repeat(k), repeat(v), mask, 50.0), *half) == """\
-%unsqueeze = unsqueeze(%y, -3) : bf16[2, 2, 1, 5, 8]
-%expand = expand(%unsqueeze, [2, 2, 2, 5, 8]) : bf16[2, 2, 2, 5, 8]
-%reshape = reshape(%expand, [2, 4, 5, 8]) : bf16[2, 4, 5, 8]
-%unsqueeze_2 = unsqueeze(%z, -3) : bf16[2, 2, 1, 5, 8]
-%expand_2 = expand(%unsqueeze_2, [2, 2, 2, 5, 8]) : bf16[2, 2, 2, 5, 8]
-%reshape_2 = reshape(%expand_2, [2, 4, 5, 8]) : bf16[2, 4, 5, 8]
-%transpose = transpose(%reshape, -2, -1) : bf16[2, 4, 8, 5]
-%matmul = matmul(%x, %transpose) : bf16[2, 4, 5, 5]
-%mul = mul(%matmul, 0.3) : bf16[2, 4, 5, 5]
-%div = div(%mul, 50.0) : bf16[2, 4, 5, 5]
-%tanh = tanh(%div) : bf16[2, 4, 5, 5]
-%mul_2 = mul(%tanh, 50.0) : bf16[2, 4, 5, 5]
-%add = add(%mul_2, %u) : bf16[2, 4, 5, 5]
-%softmax = softmax(%add, -1, f32) : f32[2, 4, 5, 5]
-%to = _to_copy(%softmax, dtype=bf16) : bf16[2, 4, 5, 5]
-%matmul_2 = matmul(%to, %reshape_2) : bf16[2, 4, 5, 8]
+%matmul_2 = qpass.eager_attention(%x, %y, %z, %u, 0.3, 50.0) : bf16[2, 4, 5, 8]   \
# raise/eager_attention_expanded_masked_capped
"""


@pytest.mark.parametrize(
    ("grouped", "masked", "cap", "upcast"), itertools.product((True, False), (True, False), (None, 50.0), (True, False))
)
def test_equal_numbers(grouped: bool, masked: bool, cap: float | None, upcast: bool) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Any:
        k, v = (repeat(k), repeat(v)) if grouped else (k, v)
        return attend(q, k, v, mask[0] if mask else None, cap, upcast)

    kv = KV if grouped else Q
    equal(ops.eager_attention, function, Q, kv, kv, *([MASK] if masked else []))


def test_near_miss() -> None:
    q, mask = torch.ones(Q), torch.ones(MASK)

    def two_caps(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = torch.tanh(torch.matmul(q, k.transpose(2, 3)) * 0.3 / 50.0) * 30.0 + mask
        return torch.matmul(F.softmax(scores, dim=-1), v)

    assert reason("eager_attention_masked_capped", two_caps, q, q, q, mask) == "mul_2: cap is 30.0, and 50.0 elsewhere"

    def shown(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.3, dim=-1)
        return torch.matmul(weights, v), weights

    assert reason("eager_attention_full", shown, q, q, q) == "softmax has 2 uses, the pattern allows 1"

    def other_dim(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.3, dim=-2), v)

    assert reason("eager_attention_full", other_dim, q, q, q) == "softmax: expected the literal -1, found -2"
