from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.capture.pattern import rule
from qpass.graph.rule import Rule


def calls(rule_: Rule) -> list[list[str]]:
    return [[node.target.__name__ for node in pattern.graph.nodes if node.op == "call_function"]
            for pattern in rule_.patterns()]


@rule(x=(2, 3), w=(3,))
def cast_scale(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return (x.to(torch.float32) * w + eps).to(x.dtype)


@cast_scale.becomes
def rule_cast_scale(x: Any, w: Any, eps: Any) -> Any:
    return x


@rule(x=(5, 7), sizes={"a": 5, "b": 7})
def swap(x: Tensor) -> Tensor:
    return torch.sin(x).reshape(7, 5)


@swap.becomes_where(lambda bound: None if bound["a"] == 5 else "not five")
def rule_swap(x: Any, a: Any, b: Any) -> Any:
    return x


def test_a_pattern_goes_through_normalisation() -> None:
    assert calls(rule_cast_scale) == [["mul.Tensor", "add.Tensor"],
                                      ["_to_copy.default", "mul.Tensor", "add.Tensor", "_to_copy.default"]]


def test_holes_are_named_and_literals_found() -> None:
    for pattern in rule_cast_scale.patterns():
        assert pattern.holes == ("x", "w")
        assert list(pattern.literals.values()) == ["eps"]
        assert isinstance(pattern.root, fx.Node) and next(iter(pattern.root.users)).op == "output"
    (pattern,) = rule_swap.patterns()
    assert pattern.literals == {5: "a", 7: "b"}


def test_a_spelling_that_casts_is_typed() -> None:
    assert [pattern.typed for pattern in rule_cast_scale.patterns()] == [True, True]
    assert [pattern.typed for pattern in rule_swap.patterns()] == [False]


def test_equal_spellings_are_kept_once() -> None:
    @rule(x=(2, 3))
    def sine(x: Tensor) -> Tensor:
        return torch.sin(x.view(2, 3))

    made = sine.or_spelled(lambda x: torch.sin(x.clone())).or_spelled(lambda x: torch.sin(x) * 2)
    assert len(made.becomes(lambda x: x).patterns()) == 2


def test_tracing_waits_for_the_first_use_and_happens_once() -> None:
    traced = []

    @rule(x=(2, 3))
    def counted(x: Tensor) -> Tensor:
        traced.append(1)
        return torch.sin(x)

    made = counted.becomes(lambda x: x)
    assert not traced
    made.patterns()
    made.patterns()
    assert len(traced) == 1  # it names no dtype, so that one trace serves them all

    @rule(x=(2, 3))
    def casting(x: Tensor) -> Tensor:
        traced.append(1)
        return torch.softmax(x, -1, dtype=torch.float32)

    assert len(casting.becomes(lambda x: x).patterns()) == 2
    assert len(traced) == 3  # bfloat16 and float32


def test_name_doc_and_condition() -> None:
    assert rule_swap.name == "swap"
    assert rule_swap.where is not None and rule_swap.where({"a": 4}) == "not five"
    assert rule_cast_scale.where is None and rule_cast_scale.doc == (__doc__ or "")
