from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops

from .helpers import change, equal, reason

Q, KV, MASK = (2, 4, 5, 8), (2, 2, 5, 8), (2, 1, 5, 5)
SDPA = F.scaled_dot_product_attention


def repeat(x: Tensor) -> Tensor:
    b, heads, s, d = x.shape
    return x[:, :, None, :, :].expand(b, heads, 2, s, d).reshape(b, heads * 2, s, d)


def test_change() -> None:
    attend = lambda q, k, v, mask: SDPA(q, repeat(k), repeat(v), attn_mask=mask, scale=0.3)  # noqa: E731
    assert change(attend, torch.ones(Q), torch.ones(KV), torch.ones(KV), torch.ones(MASK)) == """\
-%unsqueeze = unsqueeze(%y, -3) : f32[2, 2, 1, 5, 8]
-%expand = expand(%unsqueeze, [2, 2, 2, 5, 8]) : f32[2, 2, 2, 5, 8]
-%reshape = reshape(%expand, [2, 4, 5, 8]) : f32[2, 4, 5, 8]
-%unsqueeze_2 = unsqueeze(%z, -3) : f32[2, 2, 1, 5, 8]
-%expand_2 = expand(%unsqueeze_2, [2, 2, 2, 5, 8]) : f32[2, 2, 2, 5, 8]
-%reshape_2 = reshape(%expand_2, [2, 4, 5, 8]) : f32[2, 4, 5, 8]
-%scaled_dot_product_attention = scaled_dot_product_attention(%x, %reshape, %reshape_2, %u, scale=0.3) : f32[2, 4, 5, 8]
+%scaled_dot_product_attention = qpass.attention(%x, %y, %z, %u, False, 0.3) : f32[2, 4, 5, 8]   \
# raise/attention_expanded_masked_scaled
"""


@pytest.mark.parametrize(
    ("heads", "kind", "scale"), itertools.product(("expanded", "gqa", "same"), ("mask", "causal", "full"), (None, 0.3))
)
def test_equal_numbers(heads: str, kind: str, scale: float | None) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Any:
        if heads == "expanded":
            k, v = repeat(k), repeat(v)
        return SDPA(q, k, v, attn_mask=mask[0] if mask else None, is_causal=kind == "causal", scale=scale,
                    enable_gqa=heads == "gqa")

    kv = Q if heads == "same" else KV
    equal(ops.attention, attend, Q, kv, kv, *([MASK] if kind == "mask" else []))


def test_near_miss() -> None:
    q, kv, mask = torch.ones(Q), torch.ones(KV), torch.ones(MASK)
    dropped = lambda q, k, v, mask: SDPA(q, k, v, mask, dropout_p=0.1, scale=0.3)  # noqa: E731
    assert reason("attention_masked_scaled", dropped, q, q, q, mask) == (
        "scaled_dot_product_attention: scaled_dot_product_attention has other arguments than the pattern"
    )
    scaled = lambda q, k, v: SDPA(q, repeat(k), repeat(v) * 2)  # noqa: E731
    assert reason("attention_expanded_full", scaled, q, kv, kv) == "mul: expected reshape, found mul"
    three = lambda q, k, v: SDPA(q, k, v, scale=0.3)  # noqa: E731
    assert reason("attention_full_scaled", three, q[0], q[0], q[0]) == "the query x has 3 dimensions, not four"
