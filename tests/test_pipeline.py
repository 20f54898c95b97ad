"""The whole way: what a user gets from ``qpass.compile``, and what it costs in accuracy on a trained model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpass
from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.capture.interface import rebuild
from qpass.debug.evaluate import perplexity, weight_bytes
from qpass.lowering.cpu import kernels
from qpass.lowering.reference import Interpreted

RECIPE = {"linears": {"0": "w8a8-int8", "2": "w4a16-g32", "4": "w8a16"}}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 70), nn.GELU(), nn.Linear(70, 8)
    return nn.Sequential(*layers).eval()


def test_compiled_equals_reference_at_any_batch():
    model, example = mlp(), (torch.randn(4, 64),)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = qpass.compile(model, RECIPE, example)
    reference = qpass.compile(model, RECIPE, example, target="reference")
    for batch in (1, 2, 5, 33):
        x = torch.randn(batch, 64)
        error = (compiled(x) - reference(x)).norm() / reference(x).norm()
        assert error < 2.0**-7  # the weight-only kernels round their inputs to bfloat16, 2^-9 each
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model[0], nn.Linear) and not hasattr(model, "qpass_plan")


class Shared(nn.Module):
    """One weight behind two linears."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(self.two(torch.relu(self.one(torch.relu(self.one(x))))))


def test_a_shared_weight_is_packed_once():
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(4, 32)
    compiled = qpass.compile(model, "w8a8-int8", (x,))
    weight = "packed" if kernels.available() is None else "plain"  # as our operators take it, or as ATen's do
    assert sum(name.endswith(weight) for name in compiled.state_dict()) == 2
    reference = qpass.compile(model, "w8a8-int8", (x,), target="reference")
    torch.testing.assert_close(compiled(x), reference(x), rtol=1e-2, atol=1e-2)


def test_a_shared_weight_has_one_format():
    recipe = {"linears": {"one": "w8a16", "two": "w4a16-g16", "head": "keep"}}
    with pytest.raises(qpass.RecipeError, match=r"one weight in two formats: one.weight asks for int8:channel:sym"):
        qpass.plan(Shared().eval(), recipe, (torch.randn(4, 32),))


def test_every_stage_is_there_and_timed():
    trace = qpass.trace(mlp(), RECIPE, (torch.randn(4, 64),), target="reference")
    stages = ["CAPTURED", "NORMAL", "RAISED", "PLANNED", "SOLVED", "QUANTISED", "FUSED", "LOWERED"]
    assert list(trace.stages) == stages and list(trace.seconds) == ["export", *stages[1:]]


def test_errors_come_before_any_work(monkeypatch):
    monkeypatch.setattr(pipeline, "export_model", lambda *args, **kwargs: pytest.fail("captured"))
    with pytest.raises(qpass.InputError, match=r"unknown target 'gpu'. Fix: use one of cpu, cuda, reference"):
        qpass.compile(mlp(), "w8a8-int8", target="gpu")
    with pytest.raises(qpass.RecipeError, match=r"unknown scheme 'w8a9'. Fix: use 'w8a16'"):
        qpass.compile(mlp(), "w8a9")


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    return model, tokenizer, pipeline.capture(model)


@pytest.mark.parametrize(("recipe", "most"), [("w8a8-int8", 1.01), ("w4a16-g128", 1.05)])
def test_perplexity_of_the_shipped_model(shipped, recipe, most):
    model, tokenizer, program = shipped
    trace = pipeline.run(program, qpass.Recipe.parse(recipe), pipeline.load_target("reference"))
    compiled = rebuild(model, program.call, Interpreted(trace["LOWERED"]))
    before, after = (perplexity(m, tokenizer, evaluation_text(), max_tokens=4096) for m in (model, compiled))
    assert after < before * most


@pytest.mark.parametrize("recipe", ["w8a8-fp8", "w4a8-fp", "w4a8-fp-m2", "mxfp4", "nvfp4", "w3a16-g128", "w6a6"])
def test_weights_take_the_bytes_that_the_plan_says_without_kernels(shipped, recipe):
    _, _, program = shipped
    trace = pipeline.run(program, qpass.Recipe.parse(recipe), pipeline.load_target("reference"))
    assert abs(weight_bytes(Interpreted(trace["LOWERED"])) / trace.plan.bytes_after - 1) < 0.03


@pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
@pytest.mark.parametrize("recipe", ["w8a8-int8", "w4a16-g128", "w8a16"])
def test_weights_take_the_bytes_that_the_plan_says(shipped, recipe):
    model, _, program = shipped
    trace = pipeline.run(program, qpass.Recipe.parse(recipe), pipeline.load_target("cpu"))
    compiled = rebuild(model, program.call, Interpreted(trace["LOWERED"]))
    assert abs(weight_bytes(compiled) / trace.plan.bytes_after - 1) < 0.03
