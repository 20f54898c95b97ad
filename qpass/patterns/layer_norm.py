"""LayerNorm over the last dimension, with its weight and bias or without.

    y = w · (x - mean(x)) · rsqrt(var(x) + eps) + b

before   %norm = layer_norm(x, [64], norm.weight, norm.bias, eps)
after    %norm = qpass.layer_norm(x, norm.weight, norm.bias, eps)
Exact: the op's meaning is this same expression.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule

_X, _W, _SIZES = (2, 3, 97), (97,), {"width": 97}


@rule("layer_norm", x=_X, w=_W, b=_W, sizes=_SIZES)
def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (97,), w, b, eps)


@layer_norm.becomes
def rule_layer_norm(x: Any, w: Any, b: Any, eps: Any, width: Any) -> Any:
    return ops.layer_norm(x, w, b, eps)


@rule("layer_norm", x=_X, w=_W, sizes=_SIZES)
def layer_norm_no_bias(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (97,), w, None, eps)


@layer_norm_no_bias.becomes
def rule_layer_norm_no_bias(x: Any, w: Any, eps: Any, width: Any) -> Any:
    return ops.layer_norm(x, w, None, eps)


@rule("layer_norm", x=_X, sizes=_SIZES)
def layer_norm_plain(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (97,), None, None, eps)


@layer_norm_plain.becomes
def rule_layer_norm_plain(x: Any, eps: Any, width: Any) -> Any:
    return ops.layer_norm(x, None, None, eps)
