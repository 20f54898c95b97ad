"""The methods that ``docs/add-a-method.md`` shows do what the page says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import torch

from qpass.methods import lkd
from qpass.passes.quantise import quantise
from tests import tiny
from tests.learn.helpers import recipe, solved

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
FIRST, SECOND = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
NAME = "layers.0.mlp.up_proj.weight"


def defined(code, name, **names):
    module = types.ModuleType("shown")
    sys.modules["shown"] = module  # where dataclasses looks for annotations
    vars(module).update(names)
    exec(code, vars(module))
    return vars(module)[name]


def test_a_method_with_a_solution():
    clip = defined(FIRST, "Clip")(share=0.5)
    after = solved(tiny.raised(), recipe([clip], {"layers.*": "w8a16", "*": "keep"}))
    before = tiny.raised().tensor(NAME)
    assert torch.equal(after.tensor(NAME), before.clamp(-before.abs().max() / 2, before.abs().max() / 2))
    assert torch.equal(after.tensor("head.weight"), tiny.raised().tensor("head.weight"))
    assert after.history[NAME] == ("clip: set",)
    quantise(after)


def test_a_method_that_learns():
    method = defined(SECOND, "LearnedWeights", **vars(lkd))(rate=1e-3, least=tiny.FFN * tiny.H)
    after = solved(tiny.raised(), recipe([method], "w4a4"))
    assert not torch.equal(after.tensor(NAME), tiny.raised().tensor(NAME))
    small = "layers.0.attn.q_proj.weight"
    assert torch.equal(after.tensor(small), tiny.raised().tensor(small))
