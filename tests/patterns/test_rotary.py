from __future__ import annotations

import torch
from torch import Tensor
from torch.export import Dim

from qpass import ops
from qpass.capture.normalise import normalise
from qpass.passes.raise_ops import raise_ops
from tests.tiny import Function, export

from .helpers import change, equal, reason

X, C = torch.ones(2, 4, 5, 8), torch.ones(2, 1, 5, 8)
SHAPES = (2, 4, 5, 8), (2, 1, 5, 8), (2, 1, 5, 8)


def half(x: Tensor, count: int = 4) -> Tensor:
    return torch.cat((-x[..., count:], x[..., :count]), dim=-1)


def pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos) + (half(x) * sin)


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos) + (pairs(x) * sin)


def test_change() -> None:
    assert change(rotary, X, C, C) == """\
-%mul = mul(%x, %y) : f32[2, 4, 5, 8]
-%slice = slice(%x, -1, 4, end) : f32[2, 4, 5, 4]
-%neg = neg(%slice) : f32[2, 4, 5, 4]
-%slice_2 = slice(%x, -1, 0, 4) : f32[2, 4, 5, 4]
-%cat = cat([%neg, %slice_2], -1) : f32[2, 4, 5, 8]
-%mul_2 = mul(%cat, %z) : f32[2, 4, 5, 8]
-%add = add(%mul, %mul_2) : f32[2, 4, 5, 8]
+%add = qpass.rotary(%x, %y, %z) : f32[2, 4, 5, 8]   # raise/rotary
"""


def test_change_interleaved() -> None:
    assert change(interleaved, X, C, C) == """\
-%mul = mul(%x, %y) : f32[2, 4, 5, 8]
-%slice = slice(%x, -1, 1, end, 2) : f32[2, 4, 5, 4]
-%neg = neg(%slice) : f32[2, 4, 5, 4]
-%slice_2 = slice(%x, -1, 0, end, 2) : f32[2, 4, 5, 4]
-%stack = stack([%neg, %slice_2], -1) : f32[2, 4, 5, 4, 2]
-%flatten = flatten(%stack, -2) : f32[2, 4, 5, 8]
-%mul_2 = mul(%flatten, %z) : f32[2, 4, 5, 8]
-%add = add(%mul, %mul_2) : f32[2, 4, 5, 8]
+%add = qpass.rotary(%x, %y, %z, True) : f32[2, 4, 5, 8]   # raise/rotary_interleaved
"""


def test_equal_numbers() -> None:
    equal(ops.rotary, rotary, *SHAPES)
    equal(ops.rotary, interleaved, *SHAPES)


def test_terms_and_factors_in_any_order() -> None:
    equal(ops.rotary, lambda x, cos, sin: (sin * half(x)) + (cos * x), *SHAPES)
    equal(ops.rotary, lambda x, cos, sin: (x * cos) + (sin * half(x)), *SHAPES)


def test_float32_inside_a_half_precision_model() -> None:
    equal(ops.rotary, lambda x, cos, sin: interleaved(x.float(), cos, sin).to(x.dtype), *SHAPES)


def test_any_rank_and_symbolic_sizes() -> None:
    equal(ops.rotary, interleaved, (2, 5, 8), (2, 5, 8), (2, 5, 8))
    assert "qpass.rotary(%x, %y, %z, True)" in change(interleaved, X, C, C, symbolic=True)


def test_exported_with_dynamic_sizes() -> None:
    dims = {0: Dim("batch", min=1, max=9), 2: Dim("seq", min=1, max=9)}
    program = normalise(export(Function(interleaved), X, C, C, dims=((dims, dims, dims),)))
    (node,) = raise_ops(program).nodes(ops.rotary)
    assert node.args[3] is True


def test_near_miss() -> None:
    lopsided = lambda x, cos, sin: (x * cos) + (half(x, 3) * sin)  # noqa: E731
    assert reason("rotary", lopsided, X, C, C) == "the two parts are 3 of 8 channels, not halves"
    other = lambda x, cos, sin: (x * cos) + torch.cat((-sin[..., 4:], x[..., :4]), dim=-1) * sin  # noqa: E731
    assert reason("rotary", other, X, X, X) == "x must be one value, found x and z"


def test_near_miss_interleaved() -> None:
    swapped = lambda x, cos, sin: (  # noqa: E731
        (x * cos) + torch.stack((-x[..., ::2], x[..., 1::2]), dim=-1).flatten(-2) * sin
    )
    assert reason("rotary_interleaved", swapped, X, C, C) == "slice: expected the literal 1, found 0"
