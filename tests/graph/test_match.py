from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass.capture.normalise import normalise
from qpass.capture.pattern import rule
from qpass.graph.match import Match, Mismatch
from qpass.graph.rewrite import find
from qpass.graph.rule import Rule
from tests.tiny import traced


@rule(x=(2, 3), y=(2, 3), z=(2, 3))
def _three(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return x * y + torch.sin(x) * z


@_three.becomes
def three(x: Any, y: Any, z: Any) -> Any:
    return x


@rule(x=(2, 3))
def _scaled(x: Tensor, scale: float) -> Tensor:
    return torch.tanh(x / scale) * scale


@_scaled.becomes
def scaled(x: Any, scale: Any) -> Any:
    return x




def last(rule_: Rule, function: Any, *inputs: Tensor, **options: Any) -> Match | Mismatch:
    program = normalise(traced(function, *inputs, **options))
    return find(rule_, list(program.nodes())[-1])


A = torch.ones(2, 3)


def test_bindings_and_nodes() -> None:
    found = last(three, lambda x, y, z: x * y + torch.sin(x) * z, A, A, A)
    assert isinstance(found, Match)
    assert {key: value.meta["name"] for key, value in found.bindings.items()} == {"x": "x", "y": "y", "z": "z"}
    assert [node.meta["name"] for node in found.nodes] == ["sin", "mul_2", "mul", "add"]


def test_all_orders_of_commuting_operands() -> None:
    """The first order that fits an inner product may not fit the whole; the matcher comes back to it."""
    for function in (
        lambda x, y, z: torch.sin(x) * z + x * y,
        lambda x, y, z: z * torch.sin(x) + y * x,
        lambda x, y, z: y * x + z * torch.sin(x),
        lambda x, y, z: y * x + torch.sin(x) * z,
    ):
        found = last(three, function, A, A, A)
        assert isinstance(found, Match), found
        assert found.bindings["x"].meta["name"] == "x" and found.bindings["y"].meta["name"] == "y"


def test_literals() -> None:
    found = last(scaled, lambda x: torch.tanh(x / 30.0) * 30.0, A)
    assert isinstance(found, Match) and found.bindings["scale"] == 30.0
    found = last(scaled, lambda x: torch.tanh(x / 30.0) * 20.0, A)
    assert not found and found.reason == "mul: scale is 20.0, and 30.0 elsewhere"


def test_mismatch_is_falsy_and_says_how_far_it_came() -> None:
    near = last(scaled, lambda x: torch.sin(x / 30.0) * 30.0, A)
    far = last(scaled, lambda x: torch.cos(x), A)
    assert not near and not far
    assert near.depth > far.depth
    assert near.reason == "sin: expected tanh, found sin"
    assert far.reason == "cos: expected mul, found cos"


def test_an_inner_value_has_no_other_use() -> None:
    def shared(x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.tanh(x / 30.0)
        return inner, inner * 30.0

    found = last(scaled, shared, A)
    assert not found and found.reason == "tanh has 2 uses, the pattern allows 1"


def test_one_hole_is_one_value() -> None:
    found = last(three, lambda x, y, z: x * y + torch.sin(z) * z, A, A, A)
    assert not found and found.reason == "x must be one value, found x and z"


def test_a_hole_does_not_bind_a_literal() -> None:
    found = last(scaled, lambda x: torch.tanh(torch.div(2.0, x)) * 30.0, A)
    assert not found and found.reason == "expected a value for x, found the literal 2.0"


def test_symbolic_sizes_compare_as_expressions() -> None:
    @rule(x=(5, 7, 22), sizes={"a": 5, "b": 7, "c": 22})
    def twice(x: Tensor) -> Tensor:
        return torch.sin(x).reshape(5, 7 * 22).reshape(5, 7, 22)

    # literals that are products are other literals; only whole sizes bind
    found = last(twice.becomes(lambda x, **sizes: x), lambda x: torch.sin(x).reshape(2, 12).reshape(2, 3, 4),
                 torch.ones(2, 3, 4))
    assert not found and found.reason == "reshape: expected the literal 154, found 12"
