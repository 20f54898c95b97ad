"""LayerNorm over the last dimension.

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


@rule(x=(2, 3, 97), w=(97,), b=(97,), sizes={"width": 97})
def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (97,), w, b, eps)


@layer_norm.becomes
def rule_layer_norm(x: Any, w: Any, b: Any, eps: Any, width: Any) -> Any:
    return ops.layer_norm(x, w, b, eps)
