"""Integer-only models of other architectures: legal, guarded, near float, greedy is the argmax; constants refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import qpass
from qpass import ops, pipeline
from qpass.graph.program import Program
from qpass.numerics.integer.logits import argmax
from qpass.recipe import Recipe

RECIPE = {"preset": "int-only-w8a8", "integer": {"context": 32}}
SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 0,
         "max_position_embeddings": 64}  # fmt: skip
GATED = {"intermediate_size": 80, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any], set[Any]]] = {
    "norms of queries and keys": ("Qwen3", GATED, {ops.integer_rms_norm}),
    "offset norms, scaled embedding": ("Gemma", GATED, {ops.integer_scale}),
    "fused projections, an empty rest of each head": (
        "Phi3", {"intermediate_size": 80, "num_key_value_heads": 2}, {ops.integer_gated},
    ),
    "sliding window": ("Mistral", {**GATED, "sliding_window": 6}, set()),
    "learned positions, relu, scaled queries": (
        "OPT", {"ffn_dim": 80, "word_embed_proj_dim": 64}, {ops.integer_scale, ops.integer_layer_norm},
    ),
    "parallel residual, partial rotary": (
        "GPTNeoX", {"intermediate_size": 80, "rotary_pct": 0.25}, {ops.integer_concat, ops.integer_layer_norm},
    ),
}  # fmt: skip
"""What is new in one -> its name in transformers, changes of the configuration, ops that its program must have."""

WHOLE = "GPTNeoX"
"""The one that is lowered too: that takes ten seconds, and is the same for all."""


def model(name: str, changes: dict[str, Any]) -> Any:
    """A small random model; norms and biases are random too, so that a lost one shows."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return made.eval()


def fake(float_model: Any, captured: Program) -> Any:
    """The same linears, the head too, rounded in a float program."""
    linears = {"*lm_head*": "w8a8-int8", "*": "w8a8-int8"}
    recipe, target = Recipe.parse({"linears": linears}), pipeline.load_target("reference")
    return pipeline.build(float_model, pipeline.run(captured, recipe, target), target="reference")


@pytest.mark.parametrize("what", sorted(FAMILIES))
@torch.no_grad()
def test_family(what: str) -> None:
    name, changes, wanted = FAMILIES[what]
    float_model = model(name, changes)
    trace = qpass.trace(float_model, RECIPE, target="reference", until="LOWERED" if name == WHOLE else "INTEGER")
    trace.stages.setdefault("LOWERED", trace["INTEGER"])  # its ops as they are, which is what they are lowered to
    compiled = pipeline.build(float_model, trace, target="reference")
    qpass.verify_integer_only(trace["LOWERED"])
    assert wanted <= {node.target for node in trace["INTEGER"].graph.nodes}
    ids = torch.randint(2, 96, (6, 20))
    want = float_model(ids).logits
    with qpass.integer_guard(compiled):
        got = compiled(ids).logits
    errors = [float((each - want).norm() / want.norm())
              for each in (got, fake(float_model, trace["CAPTURED"])(ids).logits)]  # fmt: skip
    assert errors[0] <= 0.02 and errors[0] <= 1.5 * errors[1], errors
    prompt = ids[:2, :8]  # beyond the sliding window
    out = compiled.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False,
                            eos_token_id=None)  # fmt: skip
    logits, _ = qpass.integer_logits(compiled, input_ids=out[:, :-1])
    assert torch.equal(argmax(logits[:, 7:]), out[:, 8:])
