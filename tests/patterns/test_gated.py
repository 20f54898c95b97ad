from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.ops.activation import KINDS

from .helpers import change, equal, reason

X = torch.ones(2, 3, 8)


def test_change() -> None:
    assert change(lambda x, y: F.silu(x) * y, X, X) == """\
-%silu = silu(%x) : f32[2, 3, 8]
-%mul = mul(%silu, %y) : f32[2, 3, 8]
+%mul = qpass.gated(%x, %y, 'silu') : f32[2, 3, 8]   # raise/gated_silu
"""


@pytest.mark.parametrize("kind", KINDS)
def test_equal_numbers(kind: str) -> None:
    equal(ops.gated, lambda gate, up: KINDS[kind](gate) * up, (2, 3, 8), (2, 3, 8))
    equal(ops.gated, lambda gate, up: up * KINDS[kind](gate), (2, 3, 8), (2, 3, 8))


def test_near_miss() -> None:
    def shared(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        act = F.silu(x)
        return act * y, act

    assert reason("gated_silu", shared, X, X) == "silu has 2 uses, the pattern allows 1"
    tanh = lambda x, y: F.gelu(x, approximate="tanh") * y  # noqa: E731
    assert reason("gated_gelu", tanh, X, X) == "gelu: gelu has other arguments than the pattern"
