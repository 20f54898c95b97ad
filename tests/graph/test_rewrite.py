from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.normalise import normalise
from qpass.capture.pattern import rule
from qpass.graph.rewrite import apply_rules
from qpass.graph.show import show
from qpass.graph.verify import verify
from tests.tiny import ids, normal, raised, traced


@rule(x=(2, 3), y=(2, 3))
def _product(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(x) * y


@_product.becomes
def product(x: Any, y: Any) -> Any:
    return ops.gated(x, y, "relu") + ops.activation(y, "relu")


def test_the_input_is_not_edited() -> None:
    before = show(normal())
    apply_rules(normal(), [], by="test")
    raised()
    assert show(normal()) == before


def test_a_replacement_of_several_ops_is_typed_and_named() -> None:
    program = normalise(traced(lambda x, y: torch.cos(torch.sin(x) * y), torch.ones(2, 3), torch.ones(2, 3)))
    found = apply_rules(program, [product], by="test")
    verify(found)
    assert show(found) == """\
program NORMAL(%x : f32[2, 3], %y : f32[2, 3])
%gated = qpass.gated(%x, %y, 'relu') : f32[2, 3]
%activation = qpass.activation(%y, 'relu') : f32[2, 3]
%mul = add(%gated, %activation) : f32[2, 3]   # test/_product
%cos = cos(%mul) : f32[2, 3]
return [%cos]
"""


def test_each_change_is_logged() -> None:
    program = normalise(traced(lambda x, y: torch.sin(x) * y, torch.ones(2, 3), torch.ones(2, 3)))
    (change,) = apply_rules(program, [product], by="test").log
    assert (change.by, change.where, change.what) == ("test/_product", "mul", "2 ops -> 1")


def test_shared_operands_stay() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.cos(x)
        return torch.sin(inner) * y, inner

    program = normalise(traced(function, torch.ones(2, 3), torch.ones(2, 3)))
    found = apply_rules(program, [product], by="test")
    assert "%cos = cos(%x)" in show(found)


def test_raising_a_whole_model_is_exact() -> None:
    for options in (("rms",), ("layer",), ("offset", 2, torch.bfloat16)):
        assert torch.equal(normal(*options).run(ids())[0], raised(*options).run(ids())[0])
    assert torch.equal(normal().run(ids(3, 7))[0], raised().run(ids(3, 7))[0])


def test_nothing_is_left_to_raise() -> None:
    from qpass.passes.raise_ops import raise_ops

    for options in (("rms",), ("layer",), ("offset", 2, torch.bfloat16)):
        assert show(raise_ops(raised(*options))) == show(raised(*options))
