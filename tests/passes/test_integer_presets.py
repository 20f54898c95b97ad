"""Integer-only presets of every width, and FSBR in front of them where there is calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import qpass
from qpass import ops, pipeline
from qpass.errors import RecipeError
from qpass.graph.program import Program
from qpass.recipe import Recipe
from tests.passes.test_integerise import model

FEW = {"steps": 2, "progress": False}
WIDTHS = {"int-only-w4a8": (4, 8), "int-only-w6a6": (6, 6), "int-only-w4a4": (4, 4)}


@pytest.fixture(scope="module")
def captured() -> Iterator[tuple[Any, Program, torch.Tensor]]:
    """(float model with outliers in its residual stream, program, token ids)."""
    with torch.no_grad():
        float_model = model()
        float_model.model.layers[0].input_layernorm.weight[3] = 20.0
        float_model.model.layers[0].mlp.gate_proj.weight[7] *= 20.0
        torch.manual_seed(1)
        yield float_model, pipeline.capture(float_model), torch.randint(2, 96, (4, 16))


def built(captured: tuple[Any, Program, torch.Tensor], recipe: dict[str, Any], data: Any = None) -> tuple[Any, Any]:
    float_model, program, _ = captured
    target = pipeline.load_target("reference")
    parsed = Recipe.parse(recipe)
    trace = pipeline.run(program, parsed, target, calibration=data, until="INTEGER" if parsed.integer else "LOWERED")
    trace.stages.setdefault("LOWERED", trace.stages.get("INTEGER", program))  # to lower them takes long
    return trace, pipeline.build(float_model, trace, target="reference")


def error(captured: tuple[Any, Program, torch.Tensor], compiled: Any) -> float:
    want = captured[0](captured[2]).logits
    return float((compiled(captured[2]).logits - want).norm() / want.norm())


@pytest.mark.parametrize("preset", sorted(WIDTHS))
@torch.no_grad()
def test_error_is_that_of_fake_quantization(captured: Any, preset: str) -> None:
    trace, compiled = built(captured, {"preset": preset, "integer": {"context": 32}})
    qpass.verify_integer_only(trace["LOWERED"])
    weight, inputs = WIDTHS[preset]
    scheme = f"int{weight}:channel:sym x int{inputs}:token:asym"
    _, fake = built(captured, {"linears": {"*lm_head*": scheme, "*": scheme}})
    with qpass.integer_guard(compiled):
        compiled(captured[2])
    assert error(captured, compiled) <= 1.2 * error(captured, fake)


@torch.no_grad()
def test_with_data_fsbr_runs_and_its_vector_is_a_dyadic(captured: Any) -> None:
    data = list(captured[2].split(2))
    methods = ["lwc", {"fsbr": {"rate": 0.1}}]
    recipe = {"preset": "int-only-w4a8", "integer": {"context": 32}, "learning": FEW, "with_data": methods}
    trace, compiled = built(captured, recipe, data)
    qpass.verify_integer_only(trace["LOWERED"])
    gate = next(node for node in trace["INTEGER"].graph.nodes if node.target is ops.integer_gated)
    mantissa, shift, exponent = gate.args[5:8]
    name = str(mantissa.target).removesuffix(".mantissa")
    smooth = trace["SOLVED"].tensor(name).double()
    parts = [trace["INTEGER"].tensor(str(part.target)) for part in (mantissa, shift, exponent)]
    held = parts[0].double() * torch.exp2(-(parts[1] + parts[2]).double())
    assert smooth.shape == (80,) and float((smooth - 1).abs().max()) > 1e-3  # it was learned
    assert bool(((held - smooth * 1.4426950408889634).abs() <= held * 2.0**-14).all())
    scheme = "int4:channel:sym x int8:token:asym"
    _, fake = built(captured, {"methods": methods, "learning": FEW,
                               "linears": {"*lm_head*": scheme, "*": scheme}}, data)  # fmt: skip
    with qpass.integer_guard(compiled):
        compiled(captured[2])
    assert error(captured, compiled) <= 1.2 * error(captured, fake)
    out = compiled.generate(captured[2][:1], attention_mask=torch.ones(1, 16, dtype=torch.int64), max_new_tokens=2,
                            do_sample=False, eos_token_id=None)  # fmt: skip
    assert out.shape == (1, 18)


def test_methods_with_data_are_plain_data() -> None:
    recipe = Recipe.parse("int-only-w8a8")
    assert recipe.methods == () and [method.name for method in recipe.with_data] == ["lwc", "fsbr"]
    assert Recipe.parse(recipe.as_dict()).with_data == recipe.with_data
    assert recipe.given(True).methods == recipe.with_data and recipe.given(False).methods == ()
    assert Recipe.parse({"preset": "int-only-w8a8", "learning": FEW}).with_data == recipe.with_data
    for own in ("smoothquant+int-only-w8a8", {"preset": "int-only-w8a8", "methods": ["smoothquant"]}):
        assert [method.name for method in Recipe.parse(own).given(True).methods] == ["smoothquant"]
    assert Recipe.parse({"preset": "int-only-w8a8", "methods": []}).given(True).methods == ()
    with pytest.raises(RecipeError, match="both 'methods' and 'with_data'"):
        Recipe.parse({"methods": ["lwc"], "with_data": ["fsbr"], "linears": {"*": "w8a8-int8"}})
