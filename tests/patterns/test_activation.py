from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.capture.normalise import normalise
from qpass.ops.activation import KINDS
from qpass.passes.raise_ops import raise_ops
from tests.tiny import traced

from .helpers import change, equal, reason

X = torch.ones(2, 3, 8)


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def test_change() -> None:
    assert change(F.relu, X) == """\
-%relu = relu(%x) : f32[2, 3, 8]
+%relu = qpass.activation(%x, 'relu') : f32[2, 3, 8]   # raise/relu
"""
    assert change(lambda x: F.relu(x) ** 2, X) == """\
-%relu = relu(%x) : f32[2, 3, 8]
-%pow = pow(%relu, 2) : f32[2, 3, 8]
+%pow = qpass.activation(%x, 'relu_squared') : f32[2, 3, 8]   # raise/relu_squared
"""


@pytest.mark.parametrize("kind", KINDS)
def test_equal_numbers(kind: str) -> None:
    equal(ops.activation, KINDS[kind], (2, 3, 8))


@pytest.mark.parametrize("spelled", [new_gelu, fast_gelu])
def test_spelled_out_gelu(spelled: object) -> None:
    """Rounding differs from ATen's own by a few units of float32's last place at the size of x."""
    x = torch.linspace(-6, 6, 4001)
    before = normalise(traced(spelled, x))  # type: ignore[arg-type]
    after = raise_ops(before)
    assert [node.args[1] for node in after.nodes(ops.activation)] == ["gelu_tanh"]
    bound = 4 * torch.finfo(torch.float32).eps * x.abs().clamp(min=1)
    assert ((before.run(x)[0] - after.run(x)[0]).abs() <= bound).all()


def test_near_miss() -> None:
    near = lambda x: x * torch.sigmoid(1.7 * x)  # noqa: E731
    assert reason("quick_gelu", near, X) == "mul: expected the literal 1.702, found 1.7"
