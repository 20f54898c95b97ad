"""Observation sees what the model computes, keeps statistics only, and says which batch was wrong."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qpass import pipeline
from qpass.errors import InputError, NumericsError
from qpass.graph.program import copy_graph
from qpass.observe.run import observe
from tests import tiny


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, gain=None):
        hidden = torch.relu(self.one(x))
        return self.two(hidden if gain is None else hidden * gain)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return pipeline.trace(Model().eval(), "w8a16", (torch.randn(3, 4),), target="reference", until="PLANNED")["PLANNED"]


def test_every_form_of_a_batch(program):
    batches = [torch.randn(2, 4) for _ in range(3)]
    forms = ([b for b in batches], [(b,) for b in batches], [{"x": b} for b in batches], iter(batches))
    torch.manual_seed(0)
    model = Model().eval()
    want = torch.cat([torch.relu(model.one(b)) for b in batches]).abs().amax(0)
    name = program.value("two").args[0].meta["name"]
    for form in forms:
        seen = []
        stats = observe(program, form, [name], progress=seen.append)[name]
        torch.testing.assert_close(stats.absmax, want)
        assert stats.count == 6 and seen == [1, 2, 3]


def test_inputs_and_many_values():
    program = tiny.raised("rms")
    names = ["layers.0.norm1", "layers.1.mlp/mul", "layers.0.attn.q_proj"]
    stats = observe(program, [(tiny.ids(),), (tiny.ids(3, 4),)], names)
    assert list(stats) == names and [stats[name].absmax.shape[0] for name in names] == [16, 24, 16]
    assert stats["layers.0.norm1"].count == 10 + 12


def test_the_run_ends_behind_the_last_value():
    program, ran = tiny.raised("rms"), []
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            node.target = functools.partial(lambda name, *args: ran.append(name) or F.linear(*args), node.meta["name"])
    observe(replace(program, graph=graph), [(tiny.ids(),)], ["layers.0.attn.q_proj"])
    assert ran == ["layers.0.attn.q_proj"]


def test_mistakes(program):
    name = program.value("two").args[0].meta["name"]
    good, broken = torch.randn(2, 4), torch.randn(2, 4)
    broken[1, 2] = float("nan")
    for batches, message in (
        ([], "there is no calibration batch"),
        ([good, torch.randn(2, 5)], "(at calibration batch 1)"),
        ([good, good, {"y": good}], "(at calibration batch 2)"),
        ([torch.randn(2, 4, dtype=torch.float64)], "(at calibration batch 0)"),
    ):
        with pytest.raises(InputError) as error:
            observe(program, batches, [name])
        assert message in str(error.value)
    with pytest.raises(NumericsError) as failure:
        observe(program, [good, broken], [name])
    assert f"(at calibration batch 1, %{name})" in str(failure.value)
    with pytest.raises(InputError, match=r"the program has no such value \(at %nowhere\)"):
        observe(program, [good], ["nowhere"])
