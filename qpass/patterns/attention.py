"""Scaled dot-product attention: masked, causal or neither; grouped key/value heads as they are written.

before   %unsqueeze ... %expand ... %view (for k, and for v) ... scaled_dot_product_attention(...)      7 lines
after    %attention = qpass.attention(%q, %k, %v, %mask, False, scale)
Exact: the op's meaning is this same expression. ``enable_gqa`` gives the same numbers as the expanded heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.graph.rule import Rule

SIZES = {"b": 2, "kv": 3, "n": 5, "s": 7, "d": 11, "heads": 15}
_Q, _KV, _MASK = (2, 15, 13, 11), (2, 3, 7, 11), (2, 1, 13, 7)

Heads = Callable[[Tensor], Tensor]


def expanded(x: Tensor) -> Tensor:
    """Key/value heads repeated for the query heads of their group, as model code spells it."""
    return x[:, :, None].expand(2, 3, 5, 7, 11).reshape(2, 15, 7, 11)


def as_is(x: Tensor) -> Tensor:
    return x


def four_dims(bound: Mapping[str, Any]) -> str | None:
    """The dialect's attention has batch and heads before the sequence."""
    rank = bound["q"].meta["val"].ndim
    return None if rank == 4 else f"the query {bound['q'].meta['name']} has {rank} dimensions, not four"


def _becomes(causal: bool) -> Callable[..., Any]:
    def becomes(q: Any, k: Any, v: Any, mask: Any = None, scale: Any = None, **sizes: Any) -> Any:
        return ops.attention(q, k, v, mask, causal, scale)

    return becomes


def _rules(name: str, heads: Heads, **options: bool) -> list[Rule]:
    sizes = SIZES if heads is expanded else {}
    kv = _KV if sizes or options else (2, 15, 7, 11)

    def masked_scaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), attn_mask=mask, scale=scale, **options)

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), attn_mask=mask, **options)

    def causal_scaled(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), is_causal=True, scale=scale, **options)

    def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), is_causal=True, **options)

    def full_scaled(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), scale=scale, **options)

    def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, heads(k), heads(v), **options)

    def one(function: Callable[..., Tensor]) -> Rule:
        function.__name__ = f"{name}_{function.__name__}"
        shapes = {"q": _Q, "k": kv, "v": kv, **({"mask": _MASK} if "_masked" in function.__name__ else {})}
        unset = rule("scaled_dot_product_attention", sizes=sizes, **shapes)(function)
        return unset.becomes_where(four_dims)(_becomes("_causal" in function.__name__))

    return [one(function) for function in (masked_scaled, masked, causal_scaled, causal, full_scaled, full)]


RULES = [
    *_rules("attention_expanded", expanded),
    *_rules("attention_gqa", as_is, enable_gqa=True),
    *_rules("attention", as_is),
]
