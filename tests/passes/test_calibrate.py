"""Methods run in order, what they may do is checked, and the plan and the log say what became of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import qpass
from qpass import pipeline
from qpass.errors import InputError, NumericsError, RecipeError
from qpass.graph.program import Derived, materialise
from qpass.graph.show import show
from qpass.lowering.reference import target
from qpass.methods import METHODS, Solution
from qpass.passes.calibrate import calibrate, method_lines
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.sites import Analysis, analyse
from qpass.sites.edited import Edited
from qpass.sites.edits import Fold
from qpass.sites.site import Site
from qpass.stages import check
from tests import tiny
from tests.sites import written

BATCHES = [(tiny.ids(),), (tiny.ids(3, 4),)]


def all_sites(layers=2):
    found = []
    for layer in range(layers):
        found += [written.qkv(layer), written.mlp_in(layer), written.v_to_o(layer), written.up_to_down(layer)]
    return tuple(found)


@pytest.fixture(autouse=True)
def analysed(monkeypatch):
    """The analysis stands in for the real one, which has tests of its own."""
    monkeypatch.setattr("qpass.passes.calibrate.analyse", lambda program: Analysis(all_sites()))


def planned(recipe, dtype=torch.float32):
    return plan_program(tiny.raised("rms", dtype=dtype), Recipe.parse(recipe), target)


def solved(recipe, batches=None, dtype=torch.float32):
    return check(calibrate(planned(recipe, dtype), Recipe.parse(recipe), batches))


def test_without_methods_nothing_changes():
    before = planned("w8a8-int8")
    after = calibrate(before, Recipe.parse("w8a8-int8"))
    assert after.stage == "SOLVED" and after.graph is before.graph and after.params is before.params


@pytest.mark.parametrize("recipe", ["smoothquant+w8a8-int8", "smoothquant-free+w8a8-int8"])
def test_the_float_function_stays(recipe):
    before = planned(recipe)
    after = solved(recipe, BATCHES)
    torch.testing.assert_close(after.run(tiny.ids())[0], before.run(tiny.ids())[0], rtol=1e-4, atol=1e-4)
    assert "8 exact edits on 8 sites" in after.log[-1].what and after.log[-1].where == recipe.split("+")[0]
    assert "param layers.1.attn.q_proj.weight : f32[16, 16] <- smoothquant" in show(after, fingerprints=False)


def test_two_methods_each_see_what_the_first_left():
    after = solved("smoothquant-free+smoothquant+w8a8-int8", iter(BATCHES))
    weight = after.params["layers.0.attn.q_proj.weight"]
    assert isinstance(weight, Derived) and weight.sources == ("layers.0.attn.q_proj.weight@1",)
    assert after.history["layers.0.attn.q_proj.weight"] == ("smoothquant-free: * s", "smoothquant: * s")
    before = planned("w8a8-int8")
    torch.testing.assert_close(after.run(tiny.ids())[0], before.run(tiny.ids())[0], rtol=1e-4, atol=1e-4)
    lines = method_lines(after, Recipe.parse("smoothquant-free+smoothquant+w8a8-int8"))
    assert [line.split(":")[0] for line in lines] == ["smoothquant-free", "smoothquant"]


def test_two_methods_that_need_data_share_an_iterator():
    recipe = Recipe.parse({"methods": ["smoothquant", {"smoothquant": {"alpha": 0.8}}], "linears": {"*": "w8a8-int8"}})
    after = calibrate(planned("w8a8-int8"), recipe, iter(BATCHES))
    assert after.history["layers.0.norm1.weight"] == ("smoothquant: / s", "smoothquant: / s")


def test_missing_data_is_said_before_anything_is_captured(monkeypatch):
    monkeypatch.setattr(pipeline, "export_model", lambda *args, **kwargs: pytest.fail("captured"))
    with pytest.raises(InputError) as error:
        qpass.compile(nn.Linear(4, 4), "smoothquant-w8a8", (torch.randn(2, 4),))
    assert "the method smoothquant looks at data, and there is none (at calibration). Fix: pass calibration=[" in str(
        error.value
    )
    with pytest.raises(InputError, match="there is no calibration batch"):
        solved("smoothquant-w8a8", [])


def test_what_is_not_exact_is_refused_and_reported(monkeypatch):
    wrong = written.up_to_down(0, "gate_proj")
    monkeypatch.setattr("qpass.passes.calibrate.analyse", lambda program: Analysis((*all_sites(), wrong)))
    after = solved("smoothquant-free+w8a8-int8")
    recipe = Recipe.parse("smoothquant-free+w8a8-int8")
    summary, refusal = method_lines(after, recipe)
    assert summary == "smoothquant-free: 8 exact edits on 9 sites, 1 refused"
    assert refusal.startswith(f"smoothquant-free: {wrong.name}: refused: it moves an output by")


def test_a_method_that_finds_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr("qpass.passes.calibrate.analyse", lambda program: Analysis(()))
    with pytest.raises(RecipeError, match=r"found nothing to act on among 0 sites \(at method smoothquant-free\)"):
        solved("smoothquant-free+w8a8-int8")


def test_codes_that_a_method_chose_are_taken(monkeypatch):
    name = "layers.0.mlp.down_proj.weight"

    @dataclass(frozen=True)
    class Zeros:
        name: ClassVar[str] = "zeros"
        needs_data: ClassVar[bool] = False

        def solve(self, program, analysis, data):
            codes = {f"{name}.codes": torch.zeros(16, 24, dtype=torch.int8), f"{name}.scale": torch.ones(16, 1)}
            return Solution(params=codes)

    monkeypatch.setitem(METHODS, "zeros", Zeros)
    after = solved("smoothquant-free+zeros+w8a8-int8")
    assert "2 parameters set" in after.log[-1].what
    lowered = check(lower(check(fuse(check(quantise(after))))))
    assert int(materialise(lowered)[f"{name}.codes"].count_nonzero()) == 0


def outliers(program_model):
    """Channels of a norm fifty times the others, as trained language models have them."""
    for layer in program_model.layers:
        layer.norm1.weight.data[3] *= 50
        layer.norm2.weight.data[5] *= 50
        for linear in (layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj):
            linear.weight.data[:, 3] /= 50
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight.data[:, 5] /= 50
    return program_model


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant-free"])
def test_outliers_hurt_less(method):
    model, ids = outliers(tiny.Decoder("rms")).eval(), tiny.ids(4, 5)
    batches = [tiny.ids(4, 5).flip(0)]

    def error(recipe):
        compiled = qpass.compile(model, recipe, (ids,), target="reference", calibration=batches)
        return (compiled(ids) - model(ids)).norm() / model(ids).norm()

    assert error(f"{method}+w8a8-int8") < error("w8a8-int8") / 2


def test_folded_weights_of_half_precision_reach_the_codes():
    after = solved("smoothquant+w8a8-int8", BATCHES, torch.bfloat16)
    lowered = check(lower(check(fuse(check(quantise(after))))))
    tensors = materialise(lowered)
    name = "layers.0.attn.q_proj.weight"
    weight = after.tensor(name)
    assert weight.dtype is torch.bfloat16
    codes = tensors[f"{name}.codes"].float() * tensors[f"{name}.scale"]
    assert (codes - weight.float()).abs().max() <= tensors[f"{name}.scale"].max() / 2 * 1.01


def test_a_folded_weight_is_computed_once_a_layer(monkeypatch):
    """Peak: what is built, and one weight. Scale, zero point and codes share one computation of it."""
    alive, most, calls, whole = [0], [0], [], Edited.__call__

    def counted(self, *sources):
        calls.append(self.name)
        result = whole(self, *sources)
        if result.dim() == 2:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(result, lambda: alive.__setitem__(0, alive[0] - 1))
        return result

    lowered = lower(fuse(quantise(solved("smoothquant-free+w4a8-g16"))))
    monkeypatch.setattr(Edited, "__call__", counted)
    materialise(lowered)
    weights = [name for name in calls if "proj" in name]
    assert len(weights) == len(set(weights)) == 14 and most[0] == 1


def test_the_plan_says_what_the_methods_did():
    model = tiny.Decoder("rms").eval()
    shown = qpass.plan(model, "smoothquant-free+w8a8-int8", (tiny.ids(),), target="reference")
    assert "method smoothquant-free\n" in str(shown)
    done = qpass.plan(model, "smoothquant-w8a8", (tiny.ids(),), target="reference", calibration=[tiny.ids()])
    assert "method smoothquant: 8 exact edits on 8 sites\n" in str(done)


def test_a_smoothed_activation_reaches_every_stage(monkeypatch):
    """FSBR's op through quantise, fuse and lower, on both targets."""

    @dataclass(frozen=True)
    class Gates:
        name: ClassVar[str] = "gates"
        needs_data: ClassVar[bool] = False

        def solve(self, program, analysis, data):
            scale = torch.linspace(0.3, 3, 24)
            return Solution(tuple(Fold(site, scale) for site in analysis.sites))

    monkeypatch.setitem(METHODS, "gates", Gates)
    found: tuple[Site, ...] = (written.gate_with_up(0), written.gate_with_up(1))
    monkeypatch.setattr("qpass.passes.calibrate.analyse", lambda program: Analysis(found))
    after = solved("gates+w8a8-int8")
    assert "2 exact edits on 2 sites" in after.log[-1].what
    quantised = check(quantise(after))
    fused = check(fuse(quantised))
    lowered = check(lower(fused))
    (want,) = quantised.run(tiny.ids())
    assert torch.equal(fused.run(tiny.ids())[0], want) and torch.equal(lowered.run(tiny.ids())[0], want)
    text = show(fused, fingerprints=False)
    assert "%layers.0.mlp.up_proj, 'silu', layers.0.mlp/mul.smooth, 'int8:token:asym') : (u8" in text
    model = tiny.Decoder("rms").eval()
    outputs = [qpass.compile(model, "gates+w8a8-int8", (tiny.ids(),), target=name)(tiny.ids())
               for name in ("reference", "cpu")]  # fmt: skip
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("scheme", ["w4a8-g16", "int4:g16:asym x int8:token:asym"])
def test_w4a8(scheme):
    """Runs on the reference; the cpu target has no kernel, takes the reference's and says so."""
    model, ids = tiny.Decoder("rms").eval(), tiny.ids()
    compiled = qpass.compile(model, scheme, (ids,), target="reference")
    want = model(ids)
    assert 0.001 < (compiled(ids) - want).norm() / want.norm() < 0.3
    shown = str(qpass.plan(model, scheme, (ids,)))
    assert "int4:g16:asym x int8:token:asym" in shown and "reference.dequantize" in shown
    assert "cpu.int8_linear: it takes int8:channel:sym weights" in shown


def test_a_parameter_with_nan_is_named(monkeypatch):
    """By name, and before a statistic or a scale trips over it."""
    monkeypatch.setattr("qpass.passes.calibrate.analyse", analyse)
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)).eval()
    model[1].weight[0, 3] = float("nan")
    for recipe in ("smoothquant-free+w8a8-int8", "smoothquant+w8a8-int8"):
        with pytest.raises(NumericsError, match=r"the first at \(0, 3\) \(at 1.weight\)"):
            pipeline.plan(model, recipe, (torch.randn(2, 8),), calibration=[torch.randn(2, 8)])
