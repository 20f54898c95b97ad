"""The cut into blocks: what belongs where, and that the pieces make the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qpass.errors import UnsupportedError
from qpass.graph.program import Program, copy_graph
from qpass.observe.segment import SegmentRunner
from qpass.sites.blocks import partition
from qpass.sites.roles import ATTENTION, FEED_FORWARD, roles
from qpass.sites.stacks import by_structure
from tests import tiny
from tests.sites import models

STYLES = ("rms", "offset", "layer")
NAMES = ("llama", "opt", "qwen3", "gemma", "mixtral", "bert", "gpt_neox", "albert", "deepseek_v3")


def piecewise(program: Program, inputs) -> dict:
    """All segments one after another, each on what it says it reads."""
    blocks = partition(program)
    values = dict(zip((node.meta["name"] for node in program.placeholders()), inputs))
    for part in (blocks.prologue, *blocks.blocks, blocks.epilogue):
        runner = SegmentRunner(program, part)
        placeholders = {name: values[name] for name in part.nodes if name in values}
        given = {name: values[name] for name in part.inputs} | placeholders
        values |= runner.run(given, program.tensor)
    return values


def bare(program: Program) -> Program:
    """Without anything that modules say."""
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        node.meta["scopes"] = ()
    return replace(program, graph=graph)


@pytest.mark.parametrize("style", STYLES)
def test_the_pieces_make_the_whole(style):
    program = tiny.raised(style)
    ids = tiny.ids(3, 7)
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output").args[0][0]
    assert torch.equal(piecewise(program, [ids])[output.meta["name"]], program.run(ids)[0])


@pytest.mark.parametrize("name", NAMES)
def test_architectures(name):
    program = models.program(name)
    blocks = partition(program)
    assert blocks.source == "modules"
    assert len(blocks.blocks) == (2 if name == "llama" else 1)
    want = program.run(*models.inputs(name))
    found = piecewise(program, models.inputs(name))
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    for node, value in zip(output.args[0], want):
        assert torch.equal(found[node.meta["name"]], value)
    for block in blocks.blocks:  # one value goes on, whatever else is saved
        assert len(block.results) == 1


def test_every_value_is_in_one_segment():
    program = tiny.raised()
    blocks = partition(program)
    names = [name for part in (blocks.prologue, *blocks.blocks, blocks.epilogue) for name in part.nodes]
    calls = [node for node in program.graph.nodes if node.op not in ("get_attr", "output")]
    assert sorted(names) == sorted(node.meta["name"] for node in calls)
    assert blocks.shared() == {} and "2 blocks, found from modules" in str(blocks)


def test_what_blocks_share_is_in_the_prologue():
    blocks = partition(models.program("llama"))
    one, two = blocks.blocks
    shared = set(one.inputs) & set(two.inputs)
    assert "model.rotary_emb/cos" in shared and all(blocks.level[name] == -1 for name in shared)
    assert {"kv_k1", "kv_v1"} <= set(two.inputs) and not {"kv_k1", "kv_v1"} & set(one.inputs)
    assert one.results == ("model.layers.0/add_2",)  # and not the cache, which only the caller reads


@pytest.mark.parametrize("style", STYLES)
def test_structure_finds_what_modules_say(style):
    program = tiny.raised(style)
    told, found = partition(program), partition(bare(program))
    assert found.source == "structure" and len(found.blocks) == len(told.blocks) == 2
    for one, two in zip(told.blocks, found.blocks):
        assert set(one.params) == set(two.params) and one.results == two.results


def test_structure_of_four_layers():
    names, own = by_structure(bare(tiny.raised("rms", layers=4)))
    assert names == [f"block.{number}" for number in range(4)]
    assert sorted(set(own.values())) == [0, 1, 2, 3]


class Twice(nn.Module):
    """Different linears: nothing repeats."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


class Alike(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


def test_a_model_without_blocks():
    with pytest.raises(UnsupportedError, match="no repeated block"):
        partition(tiny.raise_ops(tiny.normalise(tiny.export(Twice(), torch.randn(2, 4)))))


def test_a_plain_stack():
    blocks = partition(tiny.raise_ops(tiny.normalise(tiny.export(Alike(), torch.randn(2, 4)))))
    assert len(blocks.blocks) == 2 and [len(block.params) for block in blocks.blocks] == [2, 2]


class Loop(nn.Module):
    """One block used twice: its weights are shared."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = layer(x).relu()
        return x


def test_blocks_that_run_twice_are_not_cut_wrongly():
    program = tiny.raise_ops(tiny.normalise(tiny.export(Loop(), torch.randn(2, 4))))
    blocks = partition(program)
    x = torch.randn(2, 4)
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output").args[0][0]
    assert torch.equal(piecewise(program, [x])[output.meta["name"]], program.run(x)[0])
    assert blocks.shared()


def test_roles():
    found = roles(tiny.raised())
    by_role = {role: {name.split(".")[-1] for name in found if found[name] == role} for role in found.values()}
    assert by_role[ATTENTION] == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert by_role[FEED_FORWARD] == {"gate_proj", "up_proj", "down_proj"}
    assert "head" not in found


def test_roles_of_an_encoder():
    found = roles(models.program("bert"))
    assert sum(role == ATTENTION for role in found.values()) == 4
    assert sum(role == FEED_FORWARD for role in found.values()) == 2
