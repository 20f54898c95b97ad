"""Every family: one graph for prefill and decode, equal to the float model at all shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from .models import FAMILIES

# batch, prompt, padded tokens at the left of row 0. 20 tokens are more than any window here (8).
SHAPES = [(1, 1, 0), (1, 2, 0), (2, 3, 1), (2, 9, 4), (3, 20, 2)]
# Same ops in the same order on both sides; 1e-5 leaves room for another blocking of a matmul.
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def _prompt(batch: int, seq: int, pad: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, :pad] = 0
    return {"input_ids": torch.randint(2, 250, (batch, seq)), "attention_mask": mask}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_prefill_and_decode(captured: Any, family: str) -> None:
    model, rebuilt, _ = captured(family)
    for batch, seq, pad in SHAPES:
        call = _prompt(batch, seq, pad)
        caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
        for step in range(3):
            want = model(**call, past_key_values=caches[0])
            got = rebuilt(**call, past_key_values=caches[1])
            message = f"{family} batch={batch} prompt={seq} step={step}"
            assert type(got) is type(want), message
            assert got.past_key_values is caches[1], message
            assert torch.allclose(got.logits, want.logits, **TOLERANCE), message
            grown = torch.cat([call["attention_mask"], torch.ones(batch, step + 1, dtype=torch.int64)], 1)
            call = {"input_ids": torch.randint(2, 250, (batch, step + 1)), "attention_mask": grown}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens(captured: Any, family: str) -> None:
    model, rebuilt, _ = captured(family)
    call = _prompt(2, 9, 2)
    want = model.generate(**call, max_new_tokens=12, do_sample=False)
    assert torch.equal(rebuilt.generate(**call, max_new_tokens=12, do_sample=False), want)
    assert want.unique().numel() > 4  # a model that repeats one token would prove nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_call_convention(captured: Any, family: str) -> None:
    _, _, found = captured(family)
    assert sorted(found.dims.values()) == ["batch", "keep", "past", "seq"]
    names = [spec.name for spec in found.call.inputs]
    assert names == ["input_ids", "attention_mask", "position_ids", "keep", "k0", "v0", "k1", "v1"]
    assert found.call.inputs[1].shape == ("batch", "past + seq")
    assert found.call.outputs == ("logits", "k0", "v0", "k1", "v1")
    assert found.call.positions == ("mask" if family == "opt" else "arange")
    assert found.prefix == "m." and found.call.notes == ()
    lifted = [spec.target for spec in found.exported.graph_signature.input_specs if spec.target]
    assert all(name.startswith(found.prefix) for name in lifted if name in found.exported.state_dict)


def test_high_level_ops_stay_whole(captured: Any) -> None:
    targets = {str(node.target) for node in captured("llama")[2].exported.graph.nodes}
    assert {"aten.linear.default", "aten.scaled_dot_product_attention.default", "aten.silu.default"} <= targets
    assert "aten.layer_norm.default" in {str(n.target) for n in captured("opt")[2].exported.graph.nodes}


def test_the_cache_is_one_concatenation_a_tensor(captured: Any) -> None:
    graph = captured("llama")[2].exported.graph
    outputs = next(node for node in graph.nodes if node.op == "output").args[0]
    for cached in outputs[1:]:
        assert str(cached.target) == "aten.cat.default"
        assert cached.args[0][0].op == "placeholder"


def test_tied_weights_are_one_tensor(captured: Any) -> None:
    model, _, found = captured("gpt2")
    state = found.exported.state_dict
    assert model.lm_head.weight is model.transformer.wte.weight
    assert state["m.lm_head.weight"] is state["m.transformer.wte.weight"] is model.lm_head.weight
