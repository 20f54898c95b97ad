"""Degrees of freedom counted by hand, and the sites they belong to."""

from __future__ import annotations

import pytest

from qpass.sites import analyse
from qpass.sites.naming import GATED, NORM, PARALLEL, SERIAL
from tests.sites.models import HEADS, KV, D, F, H, L, cases, program

W = KV * D  # width of keys and values
LLAMA = L * (2 * H + F + W + W // 2) + H
COUNTS = {
    # per layer: two norms, up -> down, v -> o, q with k (halved by rotary pairs); and the last norm -> head
    "llama": 2 * (LLAMA - H) + H,
    "llama-bias": LLAMA,
    "llama-tied": LLAMA - H,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gemma": LLAMA,
    "gemma2": LLAMA,
    "phi3": LLAMA,  # q, k, v in one weight, gate and up in one
    "qwen3": L * (2 * H + F + W + D // 2) + H,  # the norms of q and k are shared by all heads
    "cohere": L * (H + F + W + W // 2) + H,  # attention and MLP read one norm
    "gpt_neox": L * (2 * H + HEADS * (D - 1) + H) + H,  # rotary on 2 of 4 channels of a head; GELU lets nothing through
    "gptj": L * (H + HEADS * (D - 1) + H) + H,  # one norm, interleaved rotary on 2 of 4 channels
    "opt": L * (2 * H + H + H + F) + H,  # q with k untied, v -> o, fc1 -> ReLU -> fc2
    "gpt2": L * (2 * H + H + H) + H,
    "nemotron": L * (2 * H + W + KV * (D - 1) + F) + H,  # half of a head rotates; squared ReLU
    "mixtral": L * (2 * H + 4 * F + W + W // 2) + H,  # each of 4 experts has its own up -> down
    "qwen3_moe": L * (2 * H + 4 * F + W + D // 2) + H,
    "bert": L * 2 * H + 2 * H,  # post-norm: q with k and v -> o; the last norm, and that of the head
}


@pytest.mark.parametrize("name", cases(COUNTS))
def test_freedom_counted_by_hand(name: str) -> None:
    assert analyse(program(name)).freedom == COUNTS[name]


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma"])
def test_gates_add_the_width_of_the_mlp(name: str) -> None:
    found = analyse(program(name), smooth=True)
    assert found.freedom == COUNTS[name] + F * (2 if name == "llama" else L)
    assert {site.size for site in found.sites if site.kind == GATED} == {F}


def test_sites_of_a_llama() -> None:
    found = analyse(program("llama"))
    layer = [(site.kind, site.name.replace("model.layers.0.", "")) for site in found.sites if "layers.0" in site.name]
    assert layer == [
        (NORM, "input_layernorm -> self_attn.q_proj, self_attn.k_proj, self_attn.v_proj"),
        (PARALLEL, "self_attn.q_proj -> self_attn.k_proj"),
        (SERIAL, "self_attn.v_proj -> self_attn.o_proj"),
        (NORM, "post_attention_layernorm -> mlp.gate_proj, mlp.up_proj"),
        (SERIAL, "mlp.up_proj -> mlp.down_proj"),
    ]
    assert not found.refused and not found.unknown


def test_a_router_moves_with_the_inputs_of_its_experts() -> None:
    for name, router in (("mixtral", "mlp.gate"), ("qwen3_moe", "mlp.gate")):
        site = next(s for s in analyse(program(name)).sites if "post_attention_layernorm" in s.name)
        read = {axis.param.removeprefix("model.layers.0.") for axis in site.columns}
        assert read == {f"{router}.weight", "mlp.experts.gate_up_proj"}


def test_a_squared_relu_doubles_the_label() -> None:
    site = next(s for s in analyse(program("nemotron")).sites if "down_proj" in s.name)
    powers = {axis.role: float(axis.powers.power[axis.powers.index >= 0].unique()) for axis in site.axes}
    assert abs(powers["column"]) == 2 * abs(powers["row"]) and powers["column"] * powers["row"] < 0


def test_what_is_no_site_has_a_reason() -> None:
    tied = analyse(program("llama-tied")).refused
    assert tied == {"lm_head": "lm_head.weight is shared by %model.embed_tokens and %lm_head"}
    bert = analyse(program("bert")).refused
    assert "normalises it" in bert["bert.encoder.layer.0.attention.self.query"]
    assert "(gelu) is not linear" in bert["bert.encoder.layer.0.output.dense"]


@pytest.mark.parametrize(("name", "site", "shift"), [
    ("opt", "self_attn_layer_norm", None),
    ("opt", "v_proj -> ", None),
    ("opt", "fc1 -> ", "(relu) is not linear"),
    ("llama", "q_proj -> ", "rotates it"),
    ("llama", "up_proj -> ", "multiplies it"),
    ("gpt_oss", "v_proj -> ", "multiplies it"),  # a sink takes part of the softmax: its rows do not sum to 1
])  # fmt: skip
def test_where_a_shift_may_move(name: str, site: str, shift: str | None) -> None:
    found = next(s for s in analyse(program(name)).sites if site in s.name and "layers.0" in s.name)
    assert found.unshiftable is None if shift is None else shift in (found.unshiftable or "")


def test_biases_that_a_shift_would_need() -> None:
    site = next(s for s in analyse(program("llama")).sites if "v_proj -> " in s.name)
    assert site.missing_bias == ("model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj")
    assert next(s for s in analyse(program("llama-bias")).sites if "v_proj -> " in s.name).missing_bias == ()
