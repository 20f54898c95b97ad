"""The harness of the sweep, with checks that find nothing, fail, hang up or crash."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.sites import sweep
from tests.sites.sweep import Outcome
from tests.zoo import build, capture, flat_inputs


def scale_nothing(program, inputs):
    one, two = program.run(*inputs), program.run(*inputs)
    error = max(float((a - b).abs().max()) for a, b in zip(one, two))
    return Outcome("preserved" if error == 0.0 else "changed", sites=1, freedom=32, error=error)


def crash(program, inputs):
    os._exit(3)


def fail(program, inputs):
    raise AssertionError("scales|do not cancel")


def test_outcomes_and_table():
    outcomes = sweep.sweep(["llama", "no_such_model"], scale_nothing, dynamic=False)
    assert [(found.status, found.sites, found.freedom) for found in outcomes.values()] == [
        ("preserved", 1, 32), ("not built", 0, 0)]
    assert sweep.counts(outcomes) == "1 preserved, 1 not built"
    assert "| llama | preserved | 1 | 32 | 0.0e+00 |" in sweep.markdown(outcomes)


@pytest.mark.parametrize(("check", "reason"), [(crash, "the process died"), (fail, "AssertionError: scales|do not")])
def test_one_that_fails_does_not_end_the_sweep(check, reason):
    outcomes = sweep.sweep(["opt", "opt"], check, dynamic=False)
    assert outcomes["opt"].status == "changed" and outcomes["opt"].reasons[0].startswith(reason)
    assert "scales\\|do" in sweep.markdown(outcomes) or check is crash


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "check", scale_nothing)
    assert sweep.main(["--only", "opt", "--static", "--out", str(tmp_path / "found.json")]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["opt"]["status"] == "preserved"
    assert (tmp_path / "found.md").read_text() in capsys.readouterr().out


# one of each kind: decoder, latent attention and experts, state space, seq2seq, encoder
@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "mamba2", "t5", "bert"])
def test_zoo(name):
    model, args, kwargs = build(name)
    program = capture(model, args, kwargs, dynamic=False)
    got = program.call.unflatten(program.run(*flat_inputs(program, args, kwargs)))[0]
    with torch.no_grad():
        want = model(*args, **kwargs)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert want.flatten(0, -2).std(0).min() > 1e-3  # tokens differ
    norms = [tensor for name, tensor in model.named_parameters() if tensor.dim() == 1]
    assert all(tensor.std() > 0 for tensor in norms if tensor.numel() > 1)


# Twenty that differ: embeddings, norms, attention, gates, experts, state spaces, convolutions, seq2seq, shared layers.
SAMPLE = ("apertus", "bamba", "bart", "bloom", "codegen", "deepseek_v2", "electra", "falcon", "gemma3_text", "glm4_moe",
          "granitemoe", "hrm_text", "mamba", "mobilebert", "mpt", "olmoe", "phi", "phimoe", "t5", "xlnet")  # fmt: skip


LIKE_OTHERS = ("apertus", "codegen", "electra", "falcon", "granitemoe", "mpt", "phi", "phimoe")  # of decoders above


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else [])
                                  for name in SAMPLE])  # fmt: skip
def test_sample_of_the_sweep(name):
    found = sweep.outcome(name, sweep.check, dynamic=False)
    assert found.status == "preserved", found
