from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx

from qpass.errors import VerifyError
from qpass.graph.program import Derived, Program, copy_graph
from qpass.graph.verify import verify
from qpass.stages import check
from tests.tiny import captured, normal, raised, traced


def broken(edit: Callable[[fx.Graph], None], **changes: object) -> Program:
    program = traced(lambda x, w: torch.sin(x * w), torch.ones(3), w=torch.ones(3))
    graph, _ = copy_graph(program.graph)
    edit(graph)
    return replace(program, graph=graph, **changes)


def node(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.meta.get("name") == name)


@pytest.mark.parametrize("program", [captured, normal, raised])
def test_good_programs_pass(program: Callable[[], Program]) -> None:
    assert verify(program()) is program()
    assert check(program()) is program()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda graph: node(graph, "sin").meta.pop("name"), "the value name None is missing or used twice"),
        (lambda graph: node(graph, "sin").meta.update(name="mul"), "the value name 'mul' is missing or used twice"),
        (lambda graph: node(graph, "mul").meta.pop("val"), "the value has no type"),
        (lambda graph: setattr(node(graph, "w"), "target", "v"), "parameter 'v' does not exist"),
        (lambda graph: node(graph, "mul").prepend(node(graph, "sin")), "is not sorted"),
        (lambda graph: setattr(node(graph, "mul"), "op", "call_method"), "a node of kind 'call_method'"),
    ],
)
def test_broken_programs(edit: Callable[[fx.Graph], None], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(broken(edit))


def test_the_message_says_where() -> None:
    with pytest.raises(VerifyError) as error:
        verify(broken(lambda graph: node(graph, "mul").meta.pop("val")))
    assert str(error.value).startswith("the value has no type in a program of stage CAPTURED (at %mul = ")


def test_derived_from_nothing() -> None:
    derived = Derived(("base",), torch.neg, torch.empty(3))
    with pytest.raises(VerifyError, match="parameter 'w' is derived from 'base', which does not exist"):
        verify(broken(lambda graph: None, params={"w": derived}))


def test_a_stage_rejects_what_it_must_not_hold() -> None:
    program = replace(raised(), stage="LOWERED")
    with pytest.raises(VerifyError, match=r"the dialect op qpass.rms_norm in a program of stage LOWERED \(at %layers"):
        check(program)
    with pytest.raises(VerifyError, match="a linear without a format or an explicit keep"):
        check(replace(raised(), stage="PLANNED"))
