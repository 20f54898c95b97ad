"""The plan: first match wins, every line must match, every linear kept has its reason."""

import pytest
import torch

from qpass.errors import RecipeError
from qpass.lowering.reference import target
from qpass.passes.plan import plan_program, spans, summarise
from qpass.recipe import Recipe
from tests import tiny


def plan(program, recipe):
    parsed = Recipe.parse(recipe)
    return summarise(plan_program(program, parsed, target), parsed, target)


def test_print():
    text = str(plan(tiny.raised("rms"), {"linears": {"head": "keep", "*.down_proj": "w8a16", "*": "w4a16-g16"}}))
    lines = text.splitlines()
    assert lines[0] == "plan: recipe custom on target reference"
    assert "layers.0-1.mlp.down_proj  16x24  int8:channel:sym  reference.dequantize" in lines
    head = next(line for line in lines if line.startswith("head "))
    assert head.endswith("keep              the recipe says so (head)")
    assert lines[-1].startswith("14 of 15 linears quantized; weights ")


def test_bytes_are_those_of_the_formats():
    program = tiny.raised("rms")
    found = plan(program, "w8a16")
    saved = sum(choice.bytes_before - choice.bytes_after for _, choice in found.choices)
    assert found.bytes_before - found.bytes_after == saved
    assert found.bytes_before == sum(program.like(name).nbytes for name in program.used_params())


def test_a_short_last_group_is_said():
    found = plan(tiny.raised("rms"), "w4a16-g16")
    assert "note: layers.0-1.mlp.down_proj: the last of 2 groups has 8 of 16 values" in str(found)


def test_a_tied_head_stays_unless_named():
    program = tiny.raised("rms", tied=True)
    kept = dict(plan(program, "w8a16").choices)["head"]
    assert kept.scheme is None and "shares its weight with embedding" in kept.reason
    named = plan(program, {"linears": {"head": "w8a16", "*": "w8a16"}})
    assert dict(named.choices)["head"].scheme is not None
    # the float table stays for the embedding, so the copy costs memory
    assert named.bytes_after > plan(program, "w8a16").bytes_after


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"linears": {"layers.*.mlp.gate_prj": "w8a16", "*": "w8a16"}},
            "the line 'layers.*.mlp.gate_prj' matches no linear (at recipe custom). Fix: use 'layers.",
        ),
        (
            {"linears": {"*": "w8a16", "head": "keep"}},
            "the line 'head' is never reached: lines above it match all it matches (at recipe custom). Fix: move it up",
        ),
        ("w4a16-g128", "a group of 128 is wider than 15 weights: layers.0.attn.q_proj.weight (16 inputs), "),
    ],
)
def test_mistakes(recipe, message):
    with pytest.raises(RecipeError) as error:
        plan(tiny.raised("rms"), recipe)
    assert message in str(error.value)


def test_a_computed_weight_is_kept_with_its_reason():
    class Computed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.randn(4, 4)) for _ in range(2))

        def forward(self, x):
            return torch.nn.functional.linear(x, self.a + self.b)

    from qpass.capture.normalise import normalise
    from qpass.passes.raise_ops import raise_ops

    program = raise_ops(normalise(tiny.export(Computed(), torch.randn(2, 4))))
    text = str(plan(program, {"linears": {"*": "w8a16"}}))
    assert "its weight is computed by add, not a parameter" in text


def test_spans():
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
