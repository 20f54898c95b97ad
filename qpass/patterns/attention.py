"""Scaled dot-product attention, with or without grouped key/value heads written as expand and reshape.

before   %unsqueeze ... %expand ... %view (for k, and for v) ... scaled_dot_product_attention(...)      7 lines
after    %attention = qpass.attention(%q, %k, %v, %mask, False, scale)
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule

_SIZES = {"b": 2, "kv": 3, "n": 5, "s": 7, "d": 11, "heads": 15}
_Q, _KV, _MASK = (2, 15, 13, 11), (2, 3, 7, 11), (2, 1, 13, 7)


def _repeat(x: Tensor) -> Tensor:
    return x[:, :, None].expand(2, 3, 5, 7, 11).reshape(2, 15, 7, 11)


@rule(q=_Q, k=_KV, v=_KV, mask=_MASK, sizes=_SIZES)
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, _repeat(k), _repeat(v), attn_mask=mask, scale=scale)


@grouped_attention.becomes
def rule_grouped_attention(q: Any, k: Any, v: Any, mask: Any, scale: Any, **sizes: Any) -> Any:
    return ops.attention(q, k, v, mask, False, scale)


@rule(q=_Q, k=_Q, v=_Q, mask=(2, 1, 13, 13))
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


@masked_attention.becomes
def rule_masked_attention(q: Any, k: Any, v: Any, mask: Any, scale: Any) -> Any:
    return ops.attention(q, k, v, mask, False, scale)


@rule(q=_Q, k=_Q, v=_Q, mask=(2, 1, 13, 13))
def default_scale_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@default_scale_attention.becomes
def rule_default_scale_attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return ops.attention(q, k, v, mask)


@rule(q=_Q, k=_Q, v=_Q)
def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@plain_attention.becomes
def rule_plain_attention(q: Any, k: Any, v: Any) -> Any:
    return ops.attention(q, k, v, None)


@rule(q=_Q, k=_Q, v=_Q)
def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@causal_attention.becomes
def rule_causal_attention(q: Any, k: Any, v: Any) -> Any:
    return ops.attention(q, k, v, None, True)
