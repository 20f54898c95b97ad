"""Tiny random models of real architectures through every stage, from one capture each; experts: ``test_experts``.

CAPTURED, NORMAL and RAISED equal eager; QUANTISED equals the fake-quant oracle; FUSED and LOWERED (reference) equal
QUANTISED; and the cpu target's kernels, run op by op, stay close to it.
"""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as hf

from qpass import pipeline
from qpass.graph.values import op_name
from qpass.lowering.cpu import kernels
from qpass.pipeline import load_target
from qpass.recipe import Recipe
from tests.capture.models import causal_lm
from tests.oracle import fake_quantized

FAMILIES = ["llama", "qwen3", "gemma", "mistral", "phi3", "opt", "gpt_neox", "gpt2", "bert"]
# what must have been recognised, per family: ops that the RAISED graph holds
RAISED = {
    "llama": {"qpass.rms_norm": 5, "qpass.gated": 2, "qpass.rotary": 4, "qpass.attention": 2, "qpass.cache_update": 4},
    "qwen3": {"qpass.rms_norm": 9, "qpass.gated": 2, "qpass.rotary": 4, "qpass.attention": 2},
    "gemma": {"qpass.rms_norm": 5, "qpass.gated": 2, "qpass.rotary": 4, "qpass.attention": 2},
    "mistral": {"qpass.rms_norm": 5, "qpass.gated": 2, "qpass.rotary": 4, "qpass.attention": 2},
    "phi3": {"qpass.rms_norm": 5, "qpass.gated": 2, "qpass.rotary": 4, "qpass.attention": 2},
    "opt": {"qpass.layer_norm": 5, "qpass.activation": 2, "qpass.attention": 2, "qpass.cache_update": 4},
    "gpt_neox": {"qpass.layer_norm": 5, "qpass.activation": 2, "qpass.rotary": 4, "qpass.attention": 2},
    "gpt2": {"qpass.layer_norm": 5, "qpass.activation": 2, "qpass.attention": 2},
    "bert": {"qpass.layer_norm": 6, "qpass.activation": 3, "qpass.attention": 2},
}
LINEARS = {"llama": 15, "qwen3": 15, "gemma": 15, "mistral": 15, "phi3": 9, "opt": 13, "gpt_neox": 9, "gpt2": 9,
           "bert": 14}


# The oracle runs the model's own code, whose float values may differ from the graph's in the last bit (2e-6 above). A
# weight's codes cannot change by that; an activation that lies on the border of two codes can take the other one.
ORACLE = {"w4a16-g32": 1e-5, "w8a8-int8": 2e-3}


@functools.cache
def captured(name):
    model = bert() if name == "bert" else causal_lm(name)
    return model, pipeline.capture(model)


def bert():
    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                           num_attention_heads=4, initializer_range=0.2)
    return hf.BertForMaskedLM(config).eval()


def inputs(name, model, program):
    ids = torch.randint(2, 250, (3, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, call):
    out = model(**call)
    return out.logits if hasattr(out, "logits") else out[0]


def tied(model):
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return ("lm_head", "cls.predictions.decoder") if head is not None and head.weight is table.weight else ()


@pytest.mark.parametrize(("name", "recipe"), [
    *((name, "w8a8-int8") for name in FAMILIES),
    *(pytest.param(name, "w4a16-g32", marks=[] if name in ("llama", "opt", "bert") else [pytest.mark.slow])
      for name in FAMILIES),
])  # fmt: skip
def test_every_stage(name, recipe):
    model, program = captured(name)
    call = inputs(name, model, program)
    flat = program.call.flatten((), call)
    want = logits(model, call)
    trace = pipeline.run(program, Recipe.parse(recipe), load_target("reference"))
    for stage in ("CAPTURED", "NORMAL", "RAISED"):
        torch.testing.assert_close(trace[stage].run(*flat)[0], want, rtol=1e-6, atol=2e-6)
    kinds = [op_name(node.target) for node in trace["RAISED"].nodes()]
    assert {op: kinds.count(op) for op in RAISED[name]} == RAISED[name]
    assert len(trace.plan.choices) == LINEARS[name]
    quantised = trace["QUANTISED"].run(*flat)[0]
    if name != "gpt2":  # its linears are Conv1D modules, which the oracle's hooks do not know
        oracle = logits(fake_quantized(model, recipe, keep=tied(model)), call)
        assert (quantised - oracle).norm() / oracle.norm() < ORACLE[recipe]
    assert torch.equal(trace["FUSED"].run(*flat)[0], quantised)
    assert torch.equal(trace["LOWERED"].run(*flat)[0], quantised)


@pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
@pytest.mark.parametrize("name", ["llama", "opt", "phi3", "bert"])
@pytest.mark.parametrize("recipe", ["w8a8-int8", "w8a8-int8-sym", "w4a16-g32", "w8a16"])
def test_cpu_kernels_in_the_graph(name, recipe):
    model, program = captured(name)
    flat = program.call.flatten((), inputs(name, model, program))
    trace = pipeline.run(program, Recipe.parse(recipe), load_target("cpu"))
    assert all(choice.kernel is None or choice.kernel.name.startswith("cpu.") for _, choice in trace.plan.choices)
    want, got = trace["QUANTISED"].run(*flat)[0], trace["LOWERED"].run(*flat)[0]
    # Each kernel is within its bound (tests/lowering/test_cpu_kernels.py). Through the network, a last-bit
    # difference may move a code of the next layer by one step, and weight-only kernels round their inputs to bfloat16
    # (relative 2^-9).
    assert (got - want).norm() / want.norm() < 0.01
