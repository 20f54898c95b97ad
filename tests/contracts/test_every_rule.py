"""What holds for every rule, checked on its own pattern: no rule needs a test of its own for these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from qpass.graph.match import Match
from qpass.graph.program import Program, copy_graph
from qpass.graph.rewrite import apply_rules, find, infer
from qpass.graph.rule import Pattern, Rule
from qpass.graph.values import assign_names, op_name
from qpass.graph.verify import verify
from qpass.patterns import rules

RULES = {rule.name: rule for rule in rules()}
HALF = torch.bfloat16
# Spellings that round in another order than the op; the rule's docstring says so.
INEXACT = {"gelu_tanh"}


def spellings(rule: Rule) -> Iterator[tuple[Pattern, torch.dtype]]:
    """Each traced spelling in each dtype that it stands for."""
    for pattern in rule.patterns():
        traced = next(node.meta["val"].dtype for node in pattern.graph.nodes if node.op == "placeholder")
        types = (torch.float32, HALF, torch.float16)
        yield from ((pattern, dtype) for dtype in types
                    if not pattern.typed or (dtype is torch.float32) == (traced is torch.float32))


def concrete(pattern: Pattern, dtype: torch.dtype) -> Program:
    """The pattern as a program: its named literals get a value, its half precision one dtype."""
    graph, _ = copy_graph(pattern.graph)
    for node in graph.nodes:
        node.meta = {"val": node.meta.get("val")}
        if node.op == "placeholder":
            with node.meta["val"].fake_mode:
                node.meta["val"] = torch.empty(node.meta["val"].shape, dtype=dtype)
        elif node.op == "call_function":
            node.args, node.kwargs = (value_of(pattern, part, dtype) for part in (node.args, node.kwargs))
            infer(node)
        else:
            node.args = ((pattern_root(node),),)
    assign_names(graph)
    return Program(graph, {}, stage="NORMAL")


def pattern_root(output: fx.Node) -> Any:
    return output.args[0][0] if isinstance(output.args[0], list | tuple) else output.args[0]


def value_of(pattern: Pattern, part: Any, dtype: torch.dtype) -> Any:
    if isinstance(part, dict):
        return {key: value_of(pattern, value, dtype) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(value_of(pattern, value, dtype) for value in part)
    if part is HALF:
        return dtype
    return 0.3 if isinstance(part, float) and part in pattern.literals else part


def inputs(program: Program) -> list[torch.Tensor]:
    return [torch.randn(node.meta["val"].shape).to(node.meta["val"].dtype) for node in program.placeholders()]


def raise_one(rule: Rule, program: Program) -> Program | None:
    """The program with the rule applied; None if its condition refuses this dtype."""
    root = list(program.nodes())[-1]
    found = find(rule, root)
    if not isinstance(found, Match):
        assert rule.where is not None, found.reason
        return None
    return verify(apply_rules(program, [rule], by="raise"))


@pytest.mark.parametrize("name", RULES)
def test_the_replacement_has_the_patterns_numbers(name: str) -> None:
    rule, checked = RULES[name], 0
    for pattern, dtype in spellings(rule):
        before = concrete(pattern, dtype)
        after = raise_one(rule, before)
        if after is None:
            continue
        values = inputs(before)
        (one,), (two,) = before.run(*values), after.run(*values)
        assert one.dtype == two.dtype == list(after.nodes())[-1].meta["val"].dtype
        assert one.shape == two.shape == list(after.nodes())[-1].meta["val"].shape
        if name in INEXACT:
            bound = 8 * torch.finfo(dtype).eps * values[0].double().abs().clamp(min=1)
            assert ((one.double() - two.double()).abs() <= bound).all()
        else:
            assert torch.equal(one, two), dtype
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("name", RULES)
def test_the_replacement_is_not_matched_again(name: str) -> None:
    for pattern, dtype in spellings(RULES[name]):
        after = raise_one(RULES[name], concrete(pattern, dtype))
        if after is not None:
            again = apply_rules(after, [RULES[name]], by="raise")
            assert len(again.log) == len(after.log) == 1


@pytest.mark.parametrize("name", RULES)
def test_the_replacement_is_fewer_ops(name: str) -> None:
    pattern, dtype = next(one for one in spellings(RULES[name]) if raise_one(RULES[name], concrete(*one)))
    before = concrete(pattern, dtype)
    after = raise_one(RULES[name], before)
    assert after is not None and len(list(after.nodes())) == 1 <= len(list(before.nodes()))


@pytest.mark.parametrize("name", RULES)
def test_the_file_opens_with_before_after_and_exactness(name: str) -> None:
    doc = RULES[name].doc
    assert "before   " in doc and "after    " in doc
    assert "Exact" in doc


def test_names_are_unique() -> None:
    assert len(RULES) == len(rules())


@pytest.mark.parametrize("name", RULES)
def test_every_spelling_holds_an_anchor(name: str) -> None:
    rule = RULES[name]
    assert rule.anchors
    for pattern in rule.patterns():
        ops = {op_name(node.target) for node in pattern.graph.nodes if node.op == "call_function"}
        assert ops & set(rule.anchors), (rule.anchors, ops)
