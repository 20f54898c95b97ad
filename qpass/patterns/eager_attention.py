"""Attention that the model author wrote out, as models with soft-capped scores do.

    s = scale · q kᵀ;  s = cap · tanh(s / cap);  y = softmax32(s + mask).to(q.dtype) v

before   %matmul = matmul(%q, %kt); %mul = mul(%matmul, scale) ... %softmax ... matmul(%to, %v)      7 to 16 lines
after    %attention = qpass.eager_attention(%q, %k, %v, %mask, scale, cap)
Exact: the op's meaning is this same expression. A softmax in half precision computes in float32 and rounds once, which
is the same as a softmax in float32 that is cast after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule
from qpass.graph.rule import Rule
from qpass.patterns.attention import SIZES, Heads, as_is, expanded, four_dims

_Q, _KV, _MASK = (2, 15, 13, 11), (2, 3, 7, 11), (2, 1, 13, 7)
_Softmax = Callable[[Tensor], Tensor]


def _upcast(scores: Tensor) -> Tensor:
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _direct(scores: Tensor) -> Tensor:
    return F.softmax(scores, dim=-1)


def _cap(scores: Tensor, cap: float) -> Tensor:
    return torch.tanh(scores / cap) * cap


def _functions(heads: Heads, softmax: _Softmax) -> dict[str, Callable[..., Tensor]]:
    def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
        return torch.matmul(q, heads(k).transpose(2, 3)) * scale

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        return torch.matmul(softmax(scores(q, k, scale) + mask), heads(v))

    def full(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return torch.matmul(softmax(scores(q, k, scale)), heads(v))

    def masked_capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
        return torch.matmul(softmax(_cap(scores(q, k, scale), cap) + mask), heads(v))

    def full_capped(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float) -> Tensor:
        return torch.matmul(softmax(_cap(scores(q, k, scale), cap)), heads(v))

    return {"masked": masked, "full": full, "masked_capped": masked_capped, "full_capped": full_capped}


def _becomes(q: Any, k: Any, v: Any, scale: Any, mask: Any = None, cap: Any = 0.0, **sizes: Any) -> Any:
    return ops.eager_attention(q, k, v, mask, scale, cap)


def _rules(name: str, heads: Heads) -> list[Rule]:
    kv, sizes = (_KV, SIZES) if heads is expanded else ((2, 15, 7, 11), {})
    made = []
    for kind, function in _functions(heads, _upcast).items():
        function.__name__ = f"{name}_{kind}"
        shapes = {"q": _Q, "k": kv, "v": kv, **({"mask": _MASK} if "masked" in kind else {})}
        unset = rule("softmax", "_softmax", sizes=sizes, **shapes)(function)
        unset.or_spelled(_functions(heads, _direct)[kind])
        made.append(unset.becomes_where(four_dims)(_becomes))
    return made


RULES = [*_rules("eager_attention_expanded", expanded), *_rules("eager_attention", as_is)]
