"""QUANTISED against an independent oracle, and FUSED and LOWERED against QUANTISED, bit for bit."""

import pytest
import torch

from qpass import ops
from qpass.errors import NumericsError
from qpass.graph.program import Derived, materialise
from qpass.graph.show import show
from qpass.graph.values import op_name
from qpass.lowering.reference import target
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.stages import check
from tests import tiny
from tests.oracle import fake_quantized

RECIPES = ["w8a8-int8", "w8a8-int8-sym", "w8a16", "w4a16-g16"]


def stages(style, recipe, dtype=torch.float32):
    program = plan_program(tiny.raised(style, dtype=dtype), Recipe.parse(recipe), target)
    quantised = check(quantise(program))
    fused = check(fuse(quantised))
    return quantised, fused, check(lower(fused))


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_quantised_equals_the_oracle(style, recipe):
    quantised, fused, lowered = stages(style, recipe)
    ids = tiny.ids(3, 7)
    model = fake_quantized(tiny.Decoder(style), recipe)
    with torch.no_grad():
        want = model(ids)
    (got,) = quantised.run(ids)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    assert torch.equal(fused.run(ids)[0], got)
    assert torch.equal(lowered.run(ids)[0], got)


def test_half_precision_runs_through():
    quantised, fused, lowered = stages("rms", "w8a8-int8", torch.bfloat16)
    (got,) = quantised.run(tiny.ids())
    assert got.dtype is torch.bfloat16
    assert torch.equal(fused.run(tiny.ids())[0], got) and torch.equal(lowered.run(tiny.ids())[0], got)


def test_inputs_are_quantized_once_and_joined_to_their_producers():
    _, fused, _ = stages("rms", "w8a8-int8")
    kinds = [op_name(node.target) for node in fused.nodes()]
    assert kinds.count("qpass.linear") == 15
    # per layer: q, k, v share one; o, gate and up, down; and one for the head
    assert kinds.count("qpass.rms_norm_quantize") == 2 * 2 + 1
    assert kinds.count("qpass.gated_quantize") == 2 and kinds.count("qpass.quantize") == 2
    alone = [change for change in fused.log if "stands alone" in change.what]
    assert len(alone) == 2 and "which no fusion joins" in alone[0].what


def test_nothing_of_an_earlier_stage_is_left():
    quantised, fused, lowered = stages("layer", "w8a8-int8")
    assert not any(node.target in (ops.quantize, ops.linear) for node in quantised.nodes())
    assert "torchao." not in show(fused) and "qpass." not in show(lowered).replace("qpass.stages", "")


def test_codes_are_derived_and_computed_once_a_layer():
    quantised, _, _ = stages("rms", "w4a16-g16")
    name = "layers.0.mlp.down_proj.weight"
    codes = quantised.params[f"{name}.codes"]
    assert isinstance(codes, Derived) and codes.like.shape == (16, 24)
    tensors = materialise(quantised)
    assert tensors[f"{name}.codes"].dtype is torch.uint8 and int(tensors[f"{name}.codes"].max()) <= 15
    assert tensors[f"{name}.scale"].shape == (16, 2)
    assert all(tensors[key].shape == quantised.like(key).shape for key in tensors)
    assert all(tensors[key].dtype == quantised.like(key).dtype for key in tensors)


def test_a_nan_weight_is_named():
    program = plan_program(tiny.raised("rms"), Recipe.parse("w8a16"), target)
    broken = program.tensor("layers.1.attn.o_proj.weight").clone()
    broken[2, 3] = float("nan")
    program = program.with_graph(program.graph, params={**program.params, "layers.1.attn.o_proj.weight": broken})
    with pytest.raises(NumericsError) as error:
        quantise(program)
    assert "1 NaN or Inf values, the first at (2, 3) (at layers.1.attn.o_proj.weight)" in str(error.value)


def test_passes_leave_their_input_alone():
    program = plan_program(tiny.raised("rms"), Recipe.parse("w8a8-int8"), target)
    before = show(program)
    lower(fuse(quantise(program)))
    assert show(program) == before
