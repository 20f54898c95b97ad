"""Edits are checked on the graph they change: legal ones pass, illegal ones are found, named and left out."""

from __future__ import annotations

import functools
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from qpass import pipeline
from qpass.errors import InputError, NumericsError
from qpass.sites import verify
from qpass.sites.edits import Fold, Shift, apply
from qpass.sites.inputs import random_inputs
from qpass.sites.site import Site, State
from qpass.sites.verify import relative_error, run_in, verified
from tests import tiny
from tests.sites import written


def scale(size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 + 0.2


def fold(site, seed=0):
    return Fold(site, scale(site.size, seed))


def legal(style="rms"):
    sites = [written.qkv(0, style), written.mlp_in(0, style), written.v_to_o(0, style), written.qkv(1, style)]
    if style == "rms":
        return [*sites, written.q_with_k(), written.up_to_down(), written.gate_with_up(1)]
    return [*sites, written.fc1_to_fc2()]


def untied_v_to_o():
    """Every column of o with a factor of its own, each row of v with that of the group's first head."""
    site = written.v_to_o()
    producer, consumer = site.axes
    own = torch.arange(tiny.H)
    first = (torch.arange(tiny.KV)[:, None] * tiny.HEADS // tiny.KV * tiny.D + torch.arange(tiny.D)).reshape(-1)
    axes = (replace(producer, powers=written.powers(first, -1.0)), replace(consumer, powers=written.powers(own, 1.0)))
    return replace(site, name="untied v", size=tiny.H, axes=axes)


def naive_one_plus_w():
    site = written.qkv(0, "offset")
    return replace(site, axes=tuple(replace(axis, offset=0.0) for axis in site.axes))


def forgotten_consumer():
    site = written.qkv()
    return replace(site, name="forgot v", axes=site.axes[:-1])


ILLEGAL = {
    "G2 one column perturbed": ("rms", untied_v_to_o()), "G3 gate to down": ("rms", written.up_to_down(0, "gate_proj")),
    "G4 untied": ("rms", written.q_with_k(0, "none")), "G4 adjacent": ("rms", written.q_with_k(0, "adjacent")),
    "G5 w of 1 + w": ("offset", naive_one_plus_w()), "a consumer forgotten": ("rms", forgotten_consumer()),
    "no smooth": ("rms", replace(written.gate_with_up(), smooths=())),
}  # fmt: skip


@pytest.mark.parametrize("style", ["rms", "layer"])
def test_legal_edits_all_stay(style):
    edits = [fold(site, seed) for seed, site in enumerate(legal(style))]
    result = verified(tiny.raised(style), edits, by="smoothquant")
    assert list(result.kept) == edits and not result.refused


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_edit_is_refused_and_the_rest_stays(name):
    style, wrong = ILLEGAL[name]
    good = [written.mlp_in(1, style), written.qkv(1, style)]
    edits = [fold(good[0]), fold(wrong), fold(good[1])]
    before = tiny.raised(style)
    result = verified(before, edits, by="smoothquant")
    assert list(result.kept) == [edits[0], edits[2]]
    ((edit, reason, error),) = result.refused
    assert edit is edits[1] and error > 1e-3 and "it moves an output by" in reason
    assert result.program.log[-1].where == wrong.name and "refused: it moves" in result.program.log[-1].what
    (one,), (two,) = (run_in(program, torch.float64, tiny.ids()) for program in (before, result.program))
    assert relative_error(one, two) < 1e-12


def test_several_guilty_edits_are_all_found():
    wrong = [fold(written.up_to_down(0, "gate_proj")), fold(written.q_with_k(1, "none")), fold(forgotten_consumer())]
    good = [fold(site) for site in (written.v_to_o(1), written.mlp_in(0), written.up_to_down(1))]
    result = verified(tiny.raised("rms"), [wrong[0], good[0], wrong[1], wrong[2], good[1], good[2]])
    assert list(result.kept) == good and [edit for edit, _, _ in result.refused] == wrong


def test_edits_that_cannot_be_carried_out_are_refused_with_the_reason():
    site = written.qkv()
    result = verified(tiny.raised("rms"), [Shift(site, torch.ones(16)), fold(site)])
    ((_, reason, error),) = result.refused
    assert "a shift needs a bias on" in reason and error == float("inf") and len(result.kept) == 1
    with_bias = verified(tiny.raised("rms"), [Shift(site, torch.ones(16)), fold(site)], add_bias=True)
    assert len(with_bias.kept) == 2 and not with_bias.refused


def test_bad_input_is_an_error():
    with pytest.raises(InputError, match="not positive and finite"):
        verified(tiny.raised("rms"), [Fold(written.qkv(), torch.zeros(16))])


def test_large_factors_are_decided_in_float64():
    """Factors over twelve decades cost float32 its digits; the edit is exact all the same."""
    site = written.v_to_o()
    wide = Fold(site, torch.logspace(-18, 18, site.size, dtype=torch.float64))
    before = tiny.raised("rms")
    result = verified(before, [wide], tolerance=1e-9)
    assert result.kept and not result.refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_precision_programs_run_wide(dtype):
    """The graph of a bfloat16 model in float32 is the float32 model with the weights of the other."""
    program = tiny.raised("offset", dtype=torch.bfloat16)
    model = tiny.Decoder("offset").to(torch.bfloat16).to(dtype)
    model.inv_freq = model.inv_freq.to(dtype)
    (got,) = run_in(program, dtype, tiny.ids())
    assert got.dtype is dtype
    torch.testing.assert_close(got, model(tiny.ids()), rtol=1e-4, atol=1e-4)


def test_bfloat16_edits_are_verified_unrounded():
    edits = [fold(site, seed) for seed, site in enumerate(legal())]
    result = verified(tiny.raised("rms", dtype=torch.bfloat16), edits)
    assert len(result.kept) == len(edits)


def test_a_parameter_is_freed_after_its_last_use(monkeypatch):
    """Peak memory: one layer above the live values, not all weights in float64."""
    alive: weakref.WeakSet = weakref.WeakSet()
    most, whole = [0], verify.read_in

    def read(program, name, dtype):
        value = whole(program, name, dtype)
        alive.add(value)
        most[0] = max(most[0], len(alive))
        return value

    monkeypatch.setattr(verify, "read_in", read)
    run_in(tiny.raised("rms"), torch.float64, tiny.ids())
    assert most[0] <= 3


@functools.cache
def causal(kind):
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=64, max_position_embeddings=64)  # fmt: skip
    else:
        config = OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
                           max_position_embeddings=64, word_embed_proj_dim=32)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    target = pipeline.load_target("reference")
    return pipeline.run(pipeline.capture(model), pipeline.Recipe.parse("w8a8-int8"), target, until="PLANNED")["PLANNED"]


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_inputs_of_a_language_model(kind):
    program = causal(kind)
    inputs = random_inputs(program, seed=3)
    assert len(inputs) == len(program.placeholders()) == len(program.call.inputs)
    assert inputs[0].shape == (2, 5) and int(inputs[0].max()) > 32  # over the whole table
    assert inputs[1].shape == (2, 8)  # 3 past, 5 new
    outputs = run_in(program, torch.float32, *inputs)
    assert all(bool(torch.isfinite(value).all()) for value in outputs)
    want = program.run(*inputs)
    assert max(map(relative_error, want, outputs)) < 1e-5
    again = random_inputs(program, seed=3)
    assert all(torch.equal(one, two) for one, two in zip(inputs, again))


def test_inputs_of_a_module_and_of_an_encoder():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(11, 8), nn.Linear(8, 3)

        def forward(self, ids, x, mask):
            return self.out((self.table(ids.view(ids.shape[0], -1)) + x) * mask[..., None])

    example = (torch.zeros(3, 4, dtype=torch.int64), torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.int64))
    program = pipeline.trace(Two().eval(), "w8a16", example, target="reference", until="PLANNED")["PLANNED"]
    ids, x, mask = random_inputs(program)
    assert ids.shape == (2, 4) and ids.dtype is torch.int64 and 1 < int(ids.max()) < 11
    assert x.shape == (2, 4, 8) and x.is_floating_point() and bool((mask == 1).all())
    assert random_inputs(program, captured_sizes=True)[0].shape == (3, 4)
    (got,) = run_in(program, torch.float64, ids, x, mask)
    assert got.dtype is torch.float64


def head_site(layer=0, states=True):
    """v -> o of the Hugging Face model: the cache of values follows."""
    base, at = f"model.layers.{layer}.self_attn", torch.arange(16)
    wide = at.view(2, 1, 8).expand(2, 2, 8).reshape(-1)
    program = causal("llama")
    reads = program.value(f"{base}.o_proj").args[0].meta["name"]
    axes = (*written.rows(f"{base}.v_proj", at), written.columns(f"{base}.o_proj", wide, reads))
    cache = program.placeholders()[4 + 2 * layer + 1].meta["name"]
    held = (State(cache, (1, 3), written.powers(at.view(2, 8), -1.0)),) if states else ()
    return Site("v -> o", "serial linear-linear", 16, axes, states=held)


def test_a_state_holds_rescaled_values():
    program = causal("llama")
    assert len(verified(program, [fold(head_site()), fold(head_site(1)), fold(head_site(), 4)]).kept) == 3
    ((_, reason, _),) = verified(program, [fold(head_site(states=False))]).refused
    assert "it moves an output by" in reason


def test_a_cache_of_the_edited_program_serves_it_from_empty():
    """What a user sees: prefill and decode with its own cache, no re-scaling by hand."""
    program = causal("llama")
    after = apply(program, [fold(head_site())])
    ids = torch.arange(10).view(2, 5) % 64

    def logits(which):
        flat = which.call.flatten((), {"input_ids": ids})
        first = which.call.unflatten(which.run(*flat))
        rest = which.call.flatten((), {"input_ids": ids[:, :2], "past_key_values": first.past_key_values})
        return which.run(*rest)[0]

    assert relative_error(logits(program), logits(after)) < 1e-5


def test_a_broken_weight_is_named_before_anything_runs():
    program, name = tiny.raised("rms", 1), "layers.0.attn.q_proj.weight"
    broken = replace(program, params={**program.params, name: torch.full((16, 16), float("nan"))})
    with pytest.raises(NumericsError, match=rf"256 NaN or Inf values, the first at \(0, 0\) \(at {name}\)"):
        verified(broken, [fold(written.qkv())])


def test_a_program_without_finite_outputs_cannot_be_checked():
    program = tiny.raised("rms", 1)
    name = "layers.0.norm2.weight"
    broken = replace(program, params={**program.params, name: torch.full((16,), float("nan"))})
    with pytest.raises(NumericsError, match="no output is finite"):
        verified(broken, [fold(written.qkv())])
