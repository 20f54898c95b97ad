"""Mixture-of-experts models through every stage: experts are quantized as linears are.

RAISED equals eager, QUANTISED equals a fake-quant oracle that loops over experts, FUSED and LOWERED equal QUANTISED.
"""

from __future__ import annotations

import functools
import types

import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from qpass import pipeline
from qpass.graph.values import op_name
from qpass.lowering.cpu import kernels
from qpass.pipeline import load_target
from qpass.recipe import Recipe
from tests.oracle import GROUPS, _channels, _groups, _rows_asymmetric, fake_quantized

_BASE = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "num_experts_per_tok": 2,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
CONFIGS = {
    "mixtral": lambda: hf.MixtralConfig(**_BASE, intermediate_size=96, num_local_experts=4, sliding_window=None),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**_BASE, head_dim=16, num_experts=8, moe_intermediate_size=32,
                                           decoder_sparse_step=1),
    "wide": lambda: hf.Qwen3MoeConfig(**{**_BASE, "hidden_size": 256}, head_dim=16, num_experts=4,
                                      moe_intermediate_size=128, decoder_sparse_step=1),
    "gpt_oss": lambda: hf.GptOssConfig(**_BASE, intermediate_size=96, head_dim=16, num_local_experts=4,
                                       rope_scaling=None, layer_types=["full_attention"]),
}  # fmt: skip
# The oracle's float values may differ from the graph's in the last bit: a code on a border can be the other one.
ORACLE = {"w4a16-g32": 1e-5, "w8a8-int8": 2e-3}


@functools.cache
def captured(name, experts="grouped_mm"):
    torch.manual_seed(0)
    attention = "eager" if name == "gpt_oss" else "sdpa"
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention).float().eval()
    model.set_experts_implementation(experts)
    for module in model.modules():
        if hasattr(module, "gate_up_proj_bias"):  # made empty
            torch.nn.init.normal_(module.gate_up_proj_bias), torch.nn.init.normal_(module.down_proj_bias)
    return model, pipeline.capture(model)


def call():
    torch.manual_seed(1)
    ids = torch.randint(2, 120, (3, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def oracle(model, recipe):
    """Linears by hooks, experts one by one; routers stay as they are."""
    made = fake_quantized(model, recipe)
    weights = functools.partial(_groups, group=GROUPS[recipe]) if recipe in GROUPS else _channels
    rows = _rows_asymmetric if recipe.startswith("w8a8") else lambda x: x
    for module in made.modules():
        if hasattr(module, "gate_up_proj") and module.gate_up_proj.dim() == 3:
            for weight in (module.gate_up_proj, module.down_proj):
                weight.data = torch.stack([weights(part) for part in weight.data])
            module.forward = types.MethodType(functools.partial(loop, rows), module)
    return made


def loop(rows, self, x, chosen, share):
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for place, expert in enumerate(chosen[token].tolist()):
            gate, up = F.linear(rows(x[token : token + 1]), self.gate_up_proj[expert]).chunk(2, -1)
            down = F.linear(rows(self.act_fn(gate) * up), self.down_proj[expert])
            out[token] += share[token, place] * down[0]
    return out


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("recipe", ["w8a8-int8", "w4a16-g32"])
def test_every_stage(name, recipe):
    model, program = captured(name)
    flat = program.call.flatten((), call())
    want = model(**call()).logits
    trace = pipeline.run(program, Recipe.parse(recipe), load_target("reference"))
    torch.testing.assert_close(trace["RAISED"].run(*flat)[0], want, rtol=1e-6, atol=1e-5)
    kinds = [op_name(node.target) for node in trace["RAISED"].nodes()]
    assert kinds.count("qpass.grouped_linear") == 2
    quantised = trace["QUANTISED"].run(*flat)[0]
    expected = oracle(model, recipe)(**call()).logits
    assert (quantised - expected).norm() / expected.norm() < ORACLE[recipe]
    assert torch.equal(trace["FUSED"].run(*flat)[0], quantised)
    assert torch.equal(trace["LOWERED"].run(*flat)[0], quantised)


def test_another_spelling():
    """Weights stored [E, K, N], biases, and rows that fetch the weight of their expert."""
    model, program = captured("gpt_oss", "batched_mm")
    flat = program.call.flatten((), call())
    trace = pipeline.run(program, Recipe.parse("w8a8-int8"), load_target("reference"))
    torch.testing.assert_close(trace["RAISED"].run(*flat)[0], model(**call()).logits, rtol=1e-6, atol=1e-5)
    assert torch.equal(trace["LOWERED"].run(*flat)[0], trace["QUANTISED"].run(*flat)[0])
    assert not trace.plan.unseen and sum(choice.scheme is not None for _, choice in trace.plan.choices) == 7


SCHEMES = {"w8a8-int8": "int8", "w8a8-fp8": "fp8", "w4a16-g32": "w4a16", "w4a8-int8": "w4a8_int8",
           "w8a8-fp8-block": "fp8_block", "w4a8-fp-m2": "w4a8_fp8"}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gpu_plan_names_the_kernel(scheme):
    """And the lowered program runs in the interpreter, near what it means."""
    pytest.importorskip("triton")
    groups = {"w4a8-int8": "int4:g32:asym x int8:token:asym", "w4a8-fp-m2": "e2m1:g32:sym:m2 x e4m3:token:sym"}
    given = groups.get(scheme, scheme)
    recipe = {"linears": {"*.experts.*": given, "*": "keep"}}
    _, program = captured("wide" if scheme == "w8a8-fp8-block" else "qwen3_moe")  # a block is of one expert
    flat = program.call.flatten((), call())
    trace = pipeline.run(program, Recipe.parse(recipe), load_target("cuda:sm_90"))
    names = [choice.kernel.name for name, choice in trace.plan.choices if "experts" in name]
    assert names == [f"cuda.{SCHEMES[scheme]}_experts"] * 2
    want, got = trace["QUANTISED"].run(*flat)[0], trace["LOWERED"].run(*flat)[0]
    assert (got - want).norm() / want.norm() < 1e-4


@pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
@pytest.mark.parametrize(("scheme", "kernel"), [("w8a8-int8", "int8"), ("w4a16-g32", "int4"), ("w8a16", "int8_weight")])
def test_the_cpu_kernels(scheme, kernel):
    _, program = captured("mixtral")
    flat = program.call.flatten((), call())
    recipe = {"linears": {"*.experts.*": scheme, "*": "keep"}}  # behind the only router: no row goes elsewhere
    trace = pipeline.run(program, Recipe.parse(recipe), load_target("cpu"))
    assert {choice.kernel.name for _, choice in trace.plan.choices if choice.kernel} == {f"cpu.{kernel}_experts"}
    want, got = trace["QUANTISED"].run(*flat)[0], trace["LOWERED"].run(*flat)[0]
    # int8 is exact but for float32 roundings; weight-only kernels round their inputs to bfloat16
    assert (got - want).norm() / want.norm() < (1e-6 if kernel == "int8" else 0.01)
