"""Every recipe by name: through ``qpass.compile`` in a few steps; every field of it can be set otherwise."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qpass
from qpass import pipeline
from qpass.learn.settings import Learning
from qpass.presets import PRESETS
from qpass.recipe import Recipe

H = 128  # the widest group
NAMES = ("omniquant-w4a16-g128", "omniquant-w3a16-g128", "omniquant-w2a16-g64", "omniquant-w4a4", "omniquant-w6a6",
         "fsbr-w4a4", "fsbr-w8a8", "zeroquant-w8a8", "zeroquant-w4/8a8-lkd")  # fmt: skip
SCHEMES = {
    "omniquant-w4a16-g128": {"int4:g128:asym"},
    "omniquant-w3a16-g128": {"int3:g128:asym"},
    "omniquant-w2a16-g64": {"int2:g64:asym"},
    "zeroquant-w4/8a8-lkd": {"int8:channel:sym x int8:token:sym", "int4:channel:sym x int8:token:sym"},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(H), nn.LayerNorm(H)
        self.q, self.k, self.v, self.o, self.gate, self.up, self.down = (nn.Linear(H, H) for _ in range(7))

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (proj(h).unflatten(-1, (2, -1)).transpose(1, 2) for proj in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


MODEL = Model().eval()
DATA = [torch.randn(2, 6, H, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.fixture(autouse=True, scope="module")
def _one_capture():
    """Programs are never edited: one export serves all recipes."""
    found, real = [], pipeline.capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "capture", lambda *args, **kwargs: found[0] if found else (
            found.append(real(*args, **kwargs)) or found[0]))  # fmt: skip
        yield


def compiled(recipe):
    return qpass.compile(MODEL, recipe, args=(DATA[0],), target="reference", calibration=DATA)


def test_all_are_tested():
    prefixes = ("omniquant-", "fsbr-", "zeroquant-w")
    assert {name for name in PRESETS if name.startswith(prefixes)} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_through_compile(name):
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    done = compiled({"preset": name, "learning": {"steps": 2, "progress": False}})
    schemes = {str(choice.scheme) for _, choice in done.qpass_plan.choices}
    assert None not in schemes and len(done.qpass_plan.choices) == 14
    assert schemes == SCHEMES.get(name, schemes)
    if PRESETS[name].get("methods"):
        lines = [line for line in done.qpass_plan.methods if "layers." in line and ("loss" in line or "rolled" in line)]
        assert len(lines) == 2
    want, got = MODEL(DATA[1]), done(DATA[1])
    assert 0 < float((got - want).norm() / want.norm()) < 0.5
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())


def test_roles_of_zeroquant():
    plan = compiled({"preset": "zeroquant-w4/8a8-lkd", "learning": {"steps": 1, "progress": False}}).qpass_plan
    for name, choice in plan.choices:
        assert str(choice.scheme.weight).startswith("int8" if name.rpartition(".")[2] in "qkvo" else "int4"), name


OTHER = {
    "epochs": 3, "steps": 5, "batches": 7, "inputs": "quantized", "same_input": False, "loss": "kl",
    "schedule": "cosine", "precision": "bfloat16", "halvings": 1, "shuffle": False, "seed": 9, "cache_mib": 1.5,
    "folder": "run", "device": "cpu", "progress": False,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_field_can_be_overridden(name):
    assert set(OTHER) == {field.name for field in fields(Learning)}
    plain = Recipe.parse(name)
    for field, value in OTHER.items():
        made = Recipe.parse({"preset": name, "learning": {field: value}})
        assert getattr(made.learning, field) == value
        assert made.learning == Learning(**{**plain.learning.as_dict(), field: value})
        assert (made.methods, made.lines) == (plain.methods, plain.lines)
    for method in plain.methods:
        made = Recipe.parse({"preset": name, "methods": [{method.name: {"rate": 0.125}}]})
        assert [one.rate for one in made.methods] == [0.125 if one.name == method.name else one.rate
                                                      for one in plain.methods]  # fmt: skip
        assert (made.lines, made.learning) == (plain.lines, plain.learning)
    made = Recipe.parse({"preset": name, "linears": {"layers.0.*": "keep", "*": "w8a16"}})
    assert [line.glob for line in made.lines] == ["layers.0.*", "*"] and made.methods == plain.methods
