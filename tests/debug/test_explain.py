from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass.debug.explain import explain
from qpass.errors import InputError
from qpass.graph.program import copy_graph
from qpass.patterns import rules
from tests.tiny import normal, raised

GATED = [rule for rule in rules() if rule.name.startswith("gated_")][:2]


def test_a_raised_value_names_its_rule() -> None:
    assert explain(raised(), "layers.0.norm1") == """\
%layers.0.norm1 = qpass.rms_norm(...)
    rule: raise/rms_norm
"""


def test_what_would_match_and_what_stopped_the_others() -> None:
    assert explain(normal(), "layers.0.mlp/mul", rules=GATED) == """\
%layers.0.mlp/mul = mul(...)
    gated_silu: matches 2 ops
    gated_gelu: stopped after 1 of 4: layers.0.mlp.act_fn: expected gelu, found silu
"""


def test_a_value_that_no_rule_ends_in() -> None:
    assert explain(raised(), "head") == "%head = linear(...)\n    no rule ends in linear\n"


def test_a_module_names_all_its_values() -> None:
    text = explain(raised(), "layers.1.attn")
    assert "%layers.1.attn/add = qpass.rotary(...)\n    rule: raise/rotary\n" in text
    assert "%layers.1.attn.q_proj" in text and "layers.0" not in text.replace("found layers.0", "")


def test_a_linears_plan() -> None:
    graph, _ = copy_graph(raised().graph)
    for node in graph.nodes:
        if node.target is torch.ops.aten.linear.default:
            node.meta["plan"] = "int8 -> some_kernel"
    assert "    plan: int8 -> some_kernel\n" in explain(replace(raised(), graph=graph), "head")


def test_nothing_matches() -> None:
    with pytest.raises(InputError, match=r"no value matches 'layers.9\*'. Fix: print the program"):
        explain(raised(), "layers.9*")
