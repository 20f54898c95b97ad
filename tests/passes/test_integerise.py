"""An integer-only model: legal, guarded, the same bits however it is run, near the float model, and refusals."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._dynamo.exc import BackendCompilerFailed
from transformers import LlamaConfig, LlamaForCausalLM

import qpass
from qpass import pipeline
from qpass.errors import InputError, NumericsError, RecipeError, UnsupportedError, VerifyError
from qpass.graph.program import Program, copy_graph
from qpass.lowering import Region
from qpass.lowering.cpu import kernels
from qpass.numerics.integer.logits import argmax
from qpass.recipe import Recipe

aten = torch.ops.aten
RECIPE = {"preset": "int-only-w8a8", "integer": {"context": 48}}


def model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes})).eval()


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Any, Any, Any]]:
    """(float model, trace, integer-only model on the reference target)."""
    with torch.no_grad():
        torch.manual_seed(0)
        float_model = model()
        trace = qpass.trace(float_model, RECIPE, target="reference")
        yield float_model, trace, pipeline.build(float_model, trace, target="reference")


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def chunks(compiled: Any, ids: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    """Logits and exponents of all positions, fed in pieces; and the cache."""
    call, cache, found = compiled._qpass_call, None, []
    for part in ids.split(sizes, 1):
        flat = call.flatten((), {"input_ids": part})
        if cache:
            past = cache[0].shape[2]
            flat[1] = torch.ones(len(ids), past + part.shape[1], dtype=torch.int64)
            flat[2] = torch.arange(past, past + part.shape[1]).expand(len(ids), -1)
            flat[4:] = cache
        flat[3] = torch.arange(part.shape[1])
        logits, exponent, *cache = compiled._qpass_runner(*flat)
        found.append((logits, exponent))
    return (*(torch.cat(parts, 1) for parts in zip(*found)), *cache)


def test_every_value_and_weight_is_an_integer(made: Any) -> None:
    _, trace, compiled = made
    for stage in ("INTEGER", "LOWERED"):
        assert qpass.verify_integer_only(trace[stage]) is trace[stage]
    assert list(trace.stages) == ["CAPTURED", "NORMAL", "RAISED", "PLANNED", "SOLVED", "INTEGER", "LOWERED"]
    assert {buffer.dtype for buffer in compiled.buffers()} <= {torch.int8, torch.int16, torch.int32}
    with pytest.raises(VerifyError, match=r"the parameter is torch.float32"):
        qpass.verify_integer_only(trace["SOLVED"])


@pytest.mark.parametrize("miss", ["cast", "op", "literal", "parameter"])
def test_one_float_anywhere_is_found(made: Any, miss: str) -> None:
    program: Program = made[1]["INTEGER"]
    graph, _ = copy_graph(program.graph)
    output = next(node for node in graph.nodes if node.op == "output")
    logits = output.args[0][0]
    value = logits.meta["val"]
    with graph.inserting_before(output), value.fake_mode:
        if miss == "cast":
            new = graph.call_function(aten._to_copy.default, (logits,), {"dtype": torch.float32})
            new.meta["val"] = value.float()
        elif miss == "op":
            new = graph.call_function(aten.div.Tensor_mode, (logits, logits), {"rounding_mode": "trunc"})
            new.meta["val"] = value
        elif miss == "literal":
            new = graph.call_function(aten.add.Tensor, (logits, 0.5))
            new.meta["val"] = value
        else:
            new = graph.create_node("get_attr", "model.norm.weight")
            new.meta["val"] = value
    new.meta["name"] = "missed"
    output.args = ([new, *output.args[0][1:]],)
    with pytest.raises(VerifyError, match="in an integer-only program"):
        qpass.verify_integer_only(replace(program, graph=graph))


def test_the_guard_sees_floats_and_a_run_has_none(made: Any) -> None:
    float_model, _, compiled = made
    ids = torch.randint(2, 96, (2, 6))
    with qpass.integer_guard(compiled):
        compiled(ids)
    with qpass.integer_guard(compiled):
        outer = compiled._qpass_runner.forward
        with qpass.integer_guard(compiled):
            compiled(ids)
        assert compiled._qpass_runner.forward is outer, "still watched behind the inner block"
    assert "forward" not in vars(compiled._qpass_runner)
    with pytest.raises(VerifyError, match="makes float32"), qpass.integer_guard():
        torch.ones(2, dtype=torch.int32) / 2
    with pytest.raises(VerifyError, match="makes float32"), qpass.integer_guard():
        torch.ones(2, dtype=torch.int32).to(torch.float32)
    with pytest.raises(InputError, match="the model is not integer-only"), qpass.integer_guard(float_model):
        pass
    compiled._qpass_runner.register_buffer("stray", torch.zeros(1))
    with pytest.raises(VerifyError, match="the weight stray is float32"), qpass.integer_guard(compiled):
        pass
    del compiled._qpass_runner.stray


def test_the_same_bits_in_one_go_in_chunks_and_token_by_token(made: Any) -> None:
    compiled, ids = made[2], torch.randint(2, 96, (2, 12))
    whole = digest(*chunks(compiled, ids, [12]))
    for sizes in ([5, 7], [1] * 12, [3, 1, 8]):
        assert digest(*chunks(compiled, ids, sizes)) == whole, sizes


def test_the_same_bits_in_any_batch_and_behind_padding(made: Any) -> None:
    compiled, ids = made[2], torch.randint(2, 96, (5, 9))
    whole = chunks(compiled, ids, [9])
    for rows in (slice(0, 1), slice(1, 3), slice(4, 5)):
        assert digest(*chunks(compiled, ids[rows], [9])) == digest(*(part[rows] for part in whole))
    padded, mask = torch.cat([torch.zeros(5, 3, dtype=torch.int64), ids], 1), torch.ones(5, 12, dtype=torch.int64)
    mask[:, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = qpass.integer_logits(compiled, input_ids=padded, attention_mask=mask, position_ids=positions)
    assert all(torch.equal(one[:, 3:], two) for one, two in zip(found, whole))


@pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
def test_kernels_give_the_same_bits(made: Any) -> None:
    """The lowered program is integer-only, every op of it has a kernel, and it runs under the guard."""
    float_model, trace, compiled = made
    lowered = pipeline.run(trace["CAPTURED"], Recipe.parse(RECIPE), pipeline.load_target("cpu"))
    assert not any(isinstance(node.target, Region) for node in lowered["LOWERED"].nodes())
    assert qpass.verify_integer_only(lowered["LOWERED"]) is lowered["LOWERED"]
    assert lowered.plan is not None and all(line.startswith(("context", "kernel")) for line in lowered.plan.ops)
    fast = pipeline.build(float_model, lowered)
    ids = torch.randint(2, 96, (2, 13))
    with qpass.integer_guard(fast):
        fast(ids)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for sizes in ([13], [5, 1, 7]):
                for one, two in zip(chunks(fast, ids, sizes), chunks(compiled, ids, sizes), strict=True):
                    assert torch.equal(one, two)
    finally:
        torch.set_num_threads(threads)


def test_error_is_that_of_rounding_inputs_and_weights(made: Any) -> None:
    """Against fake quantization of the same linears; attention's 8 bits are the integer model's alone."""
    float_model, trace, compiled = made
    recipe, target = Recipe.parse({"linears": {"*": "w8a8-int8"}}), pipeline.load_target("reference")
    fake = pipeline.build(float_model, pipeline.run(trace["CAPTURED"], recipe, target), target="reference")
    ids = torch.randint(2, 96, (8, 24))
    want = float_model(ids).logits
    errors = [float((each(ids).logits - want).norm() / want.norm()) for each in (compiled, fake)]
    assert errors[0] <= 0.02 and errors[0] <= 1.5 * errors[1], errors


def test_greedy_is_the_argmax_of_the_integers(made: Any) -> None:
    compiled, ids = made[2], torch.randint(2, 96, (2, 5))
    mask = torch.ones_like(ids)
    out = compiled.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for step in range(5, 11):
        logits, _ = qpass.integer_logits(compiled, input_ids=out[:, :step])
        assert torch.equal(argmax(logits[:, -1]), out[:, step])


def test_sampled_tokens_follow_from_the_seed_alone(made: Any) -> None:
    compiled, ids = made[2], torch.randint(2, 96, (3, 5))
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 1.5, "eos_token_id": None}

    def run(rows: torch.Tensor, **more: Any) -> torch.Tensor:
        return compiled.generate(rows, attention_mask=torch.ones_like(rows), **{**options, **more})

    whole = run(ids, seed=5)
    assert torch.equal(run(ids, seed=5), whole) and torch.equal(run(ids[:2], seed=5), whole[:2])
    assert not torch.equal(run(ids, seed=6), whole)
    with qpass.integer_guard(compiled):
        several = run(ids, seed=5, num_return_sequences=2).view(3, 2, -1)  # the first is that of one sequence a prompt
    assert torch.equal(several[:, 0], whole) and not (several[:, 1] == whole).all(-1).any()
    torch.manual_seed(1)
    one = run(ids)
    torch.manual_seed(1)
    assert torch.equal(run(ids), one)
    greedy = run(ids, do_sample=False, temperature=None)
    assert torch.equal(run(ids, seed=9, top_k=1), greedy) and torch.equal(run(ids, seed=9, top_p=1e-6), greedy)
    with pytest.raises(InputError, match=r"a seed without do_sample=True"):
        run(ids, do_sample=False, seed=1)
    with pytest.raises(UnsupportedError, match="sampling with num_beams above 1"):
        run(ids, num_beams=2)
    config = transformers.GenerationConfig(**{**options, "eos_token_id": 999})  # None would be that of the model
    assert torch.equal(compiled.generate(ids, config, attention_mask=torch.ones_like(ids), seed=5), whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temperature": -1}, "temperature is -1"), ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_p": 0.0}, "top_p 0.0"), ({"top_k": 2.5}, "top_k 2.5"), ({"seed": 1.5}, "seed 1.5"),
        ({"seed": "one"}, "seed 'one'"), ({"seed": -1}, "seed -1"), ({"min_p": 0.9}, "sampling with min_p 0.9"),
        ({"typical_p": 0.5}, "typical_p 0.5"), ({"epsilon_cutoff": 0.1}, "epsilon_cutoff"),
        ({"generation_config": transformers.GenerationConfig(do_sample=True, top_h=0.1)}, "top_h 0.1"),
    ],
)  # fmt: skip
def test_what_the_sampler_cannot_do_is_refused(made: Any, more: dict[str, Any], message: str) -> None:
    given = {"do_sample": True, **more}
    with pytest.raises((InputError, UnsupportedError), match=message):
        made[2].generate(torch.ones(1, 2, dtype=torch.int64), max_new_tokens=1, **given)


CHILD = """
import torch
import qpass
from qpass import pipeline
from tests.passes.test_integerise import RECIPE, answer, model
torch.set_num_threads(2)
with torch.no_grad():
    trace = qpass.trace(model(), RECIPE, target="reference", until="INTEGER")
    trace.stages["LOWERED"] = trace["INTEGER"]
    print(answer(pipeline.build(model(), trace, target="reference")))
"""


def answer(compiled: Any) -> str:
    """SHA-256 of int32 logits and exponents, of the cache, of tokens that are drawn, and of those of fewer rows."""
    torch.manual_seed(3)
    ids = torch.randint(2, 96, (3, 7))
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.3, "top_p": 0.9, "seed": 11}
    options["eos_token_id"] = None
    drawn = [compiled.generate(ids[:rows], attention_mask=torch.ones_like(ids[:rows]), **options) for rows in (3, 1)]
    assert torch.equal(drawn[0][:1], drawn[1])
    return digest(*chunks(compiled, ids, [7]), *drawn)


def test_the_same_bits_and_draws_in_another_process(made: Any) -> None:
    """With two threads there and one here, other seeds of hashes, and there the integer ops before they are lowered."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = answer(made[2])
    finally:
        torch.set_num_threads(threads)
    there = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300, check=True,
                           cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": "7"})  # fmt: skip
    assert there.stdout.split()[-1] == here


def test_beyond_the_context_nothing_runs(made: Any) -> None:
    compiled = made[2]
    with pytest.raises(InputError, match=r"49 tokens, past and new, where .* tables for 48"):
        compiled(torch.ones(1, 49, dtype=torch.int64))
    with pytest.raises(InputError, match="`position_ids` up to 48"):
        compiled(torch.ones(1, 2, dtype=torch.int64), position_ids=torch.tensor([[0, 48]]))
    prompt = torch.ones(1, 46, dtype=torch.int64)
    for kwargs in ({"max_new_tokens": 4}, {"max_length": 50}, {"max_new_tokens": 4, "do_sample": True}):
        with pytest.raises(InputError, match=r"46 tokens and up to 4 new ones, .* tables for 48"):
            compiled.generate(prompt, **kwargs)
    assert compiled.generate(prompt, max_new_tokens=3, min_new_tokens=3).shape == (1, 49)  # the last is not read


def test_a_mask_of_fractions_is_refused(made: Any) -> None:
    with pytest.raises(InputError, match="`attention_mask` holds other numbers than 0 and 1"):
        made[2](torch.ones(1, 2, dtype=torch.int64), attention_mask=torch.tensor([[1.0, 0.5]]))
    made[2](torch.ones(1, 2, dtype=torch.int64), attention_mask=torch.tensor([[0.0, 1.0]]))


def test_a_model_is_no_program(made: Any) -> None:
    with pytest.raises(InputError, match="is no program"):
        qpass.verify_integer_only(made[2])
    with pytest.raises(InputError, match="is no program"):
        qpass.integer_ranges(made[2])
    with pytest.raises(InputError, match="no stage 'QUANTISED' of this recipe"):
        made[1]["QUANTISED"]


def test_ids_below_zero_do_not_count_from_the_end(made: Any) -> None:
    with pytest.raises(InputError, match="`input_ids` from -1 to 5, where the model has"):
        made[2](torch.tensor([[5, -1]]))


@pytest.mark.parametrize(
    ("linears", "message"),
    [
        ({"*": "w8a8-fp8"}, "the weight format e4m3:channel"),
        ({"*": "w8a16"}, "the input format float in an integer-only program"),
        ({"*": "w4a4"}, "the weight format int4:channel:asym"),
        ({"lm_head": "keep", "*": "w8a8-int8"}, "a linear that stays in float"),
    ],
)
def test_formats_without_an_integer_form_are_named(made: Any, linears: dict[str, str], message: str) -> None:
    recipe, target = Recipe.parse({"integer": True, "linears": linears}), pipeline.load_target("reference")
    with pytest.raises(UnsupportedError, match=message):
        pipeline.run(made[1]["CAPTURED"], recipe, target, until="INTEGER")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu2"}, r"'relu_squared' has no integer form \(at .*mlp.*, File"),
        ({"hidden_act": "tanh"}, r"tanh has no integer form \(at .*act_fn, File"),
        ({"attn_implementation": "eager"}, r"attention of kind 'eager' has no integer form \(at .*attn/matmul.*, File"),
    ],
)
def test_ops_without_an_integer_form_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        qpass.trace(model(**changes), RECIPE, target="reference", until="INTEGER")


def test_angles_that_depend_on_other_positions_have_no_table() -> None:
    float_model = model()
    plain = float_model.model.rotary_emb.forward

    def by_the_last(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(each / (1 + position_ids.amax(-1)[:, None, None]) for each in plain(x, position_ids))

    float_model.model.rotary_emb.forward = by_the_last
    with pytest.raises(UnsupportedError, match="a rotary embedding whose rows depend on each other"):
        qpass.trace(float_model, RECIPE, target="reference", until="INTEGER")


def test_a_weight_that_is_not_finite_is_named(made: Any) -> None:
    float_model = model()
    with torch.no_grad():
        float_model.model.embed_tokens.weight[3, 4] = torch.inf
    with pytest.raises(NumericsError, match=r"NaN or Inf in a scale \(at model.embed_tokens.weight\)"):
        qpass.trace(float_model, RECIPE, target="reference", until="INTEGER")


def test_other_models_are_refused_for_what_they_are() -> None:
    linear = torch.nn.Linear(8, 8).eval()
    with pytest.raises(UnsupportedError, match="An integer-only program of a module"):
        qpass.trace(linear, RECIPE, args=(torch.ones(2, 8),), target="reference")
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(BackendCompilerFailed, match="An integer-only program of a graph of torch"):
        torch.compile(linear, backend="qpass", options={"recipe": RECIPE, "target": "reference"})(torch.ones(2, 8))


@pytest.mark.parametrize("word", ["int-only-w8a8", "int-only-w4a8", "int-only-w6a6", "int-only-w4a4"])
def test_recipes_are_plain_data(word: str) -> None:
    recipe = Recipe.parse(word)
    again = Recipe.parse(recipe.as_dict())
    assert recipe.integer is not None and again.integer == recipe.integer and again.lines == recipe.lines
    more = Recipe.parse({"preset": word, "integer": {"context": 64, "clip": 15}})
    assert more.integer is not None and (more.integer.context, more.integer.clip) == (64, 15)
    assert Recipe.parse(f"smoothquant+{word}").integer == recipe.integer
    assert Recipe.parse("w8a8-int8").integer is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exact"}, "mode is 'exact'"),
        ({"contxt": 5}, "unknown option 'contxt'.*use 'context'"),
        ("yes", "no set of options"),
        ({"attention": 9}, "attention is 9"),
        ({"embedding": 4}, "embedding is 4"),
        ({"embedding": 16.0}, "embedding is 16.0"),
        ({"clip": -1}, "clip is -1"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"integer": options, "linears": {"*": "w8a8-int8"}})
