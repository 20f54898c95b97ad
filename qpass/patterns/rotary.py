"""Rotary embedding applied to queries or keys, in both layouts.

    y = x · cos + rotate_half(x) · sin

before   %mul = mul(x, cos); %slice ... %neg ... %cat ... %mul_2 ... %add = add(%mul, %mul_2)
after    %add = qpass.rotary(x, cos, sin)
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule


@rule("neg", x=(2, 3, 5, 22), cos=(2, 1, 5, 22), sin=(2, 1, 5, 22), sizes={"half": 11})
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.cat((-x[..., 11:], x[..., :11]), dim=-1)
    return (x * cos) + (turned * sin)


def _is_half(bound: Mapping[str, Any]) -> str | None:
    width = bound["x"].meta["val"].shape[-1]
    return None if bound["half"] * 2 == width else f"the two parts are {bound['half']} of {width} channels, not halves"


@rotary.becomes_where(_is_half)
def rule_rotary(x: Any, cos: Any, sin: Any, half: Any) -> Any:
    return ops.rotary(x, cos, sin)


@rule("neg", x=(2, 3, 5, 22), cos=(2, 1, 5, 22), sin=(2, 1, 5, 22))
def rotary_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return (x * cos) + (turned * sin)


@rotary_interleaved.becomes
def rule_rotary_interleaved(x: Any, cos: Any, sin: Any) -> Any:
    return ops.rotary(x, cos, sin, True)
