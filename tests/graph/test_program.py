from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass.graph.program import Derived, copy_graph, materialise
from qpass.graph.show import show
from tests.tiny import ids, normal, traced


def double(w: torch.Tensor) -> torch.Tensor:
    return w * 2


def test_run_gives_the_flat_output_tuple() -> None:
    program = traced(lambda x, w: (x * w, x), torch.ones(2, 3), w=torch.full((3,), 2.0))
    one, two = program.run(torch.ones(2, 3))
    assert torch.equal(one, torch.full((2, 3), 2.0)) and torch.equal(two, torch.ones(2, 3))
    assert torch.equal(program.run(torch.ones(2, 3), params={"w": torch.zeros(3)})[0], torch.zeros(2, 3))


def test_other_batch_and_length_than_traced() -> None:
    assert normal().run(ids(3, 7))[0].shape == (3, 7, 32)


def test_value_and_nodes() -> None:
    program = normal()
    assert program.value("layers.0.attn.q_proj").target is torch.ops.aten.linear.default
    assert len(list(program.nodes(torch.ops.aten.linear.default))) == 15
    with pytest.raises(KeyError, match="nowhere"):
        program.value("nowhere")


def test_derived_parameters_are_computed_when_asked_for() -> None:
    program = traced(lambda x, w: x * w, torch.ones(3), w=torch.ones(3))
    derived = Derived(("base",), double, torch.empty(3, device="meta"))
    program = replace(program, params={"w": derived, "base": torch.full((3,), 5.0)})
    assert program.like("w").is_meta
    assert torch.equal(program.tensor("w"), torch.full((3,), 10.0))
    assert torch.equal(program.run(torch.ones(3))[0], torch.full((3,), 10.0))
    assert torch.equal(materialise(program)["w"], torch.full((3,), 10.0))


def test_with_graph_keeps_what_is_read_and_its_sources() -> None:
    program = traced(lambda x, w: x * w, torch.ones(3), w=torch.ones(3))
    derived = Derived(("base",), double, torch.empty(3, device="meta"))
    program = replace(program, params={"w": derived, "base": torch.ones(3), "unused": torch.ones(3)})
    assert list(program.with_graph(program.graph).params) == ["w", "base"]


def test_a_copy_is_independent() -> None:
    program = normal()
    before = show(program)
    graph, mapping = copy_graph(program.graph)
    assert len(graph.nodes) == len(program.graph.nodes) and len(mapping) == len(graph.nodes) - 1
    for node in graph.nodes:
        node.meta.clear()
        if node.op == "call_function":
            node.args = ()
    assert show(program) == before
