"""Caches of codes: graphs before and after, why a cache stays in float, and whole models in every kind of call."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from qpass import ops, pipeline
from qpass.errors import InputError
from qpass.formats import Format
from qpass.graph.values import op_name
from qpass.numerics import kv_rows
from qpass.passes.cache_codes import cache_codes, refusal
from qpass.passes.fuse import fuse
from qpass.passes.plan import plan_program
from qpass.pipeline import load_target
from qpass.recipe import Recipe
from tests import tiny
from tests.capture.models import causal_lm

FAMILIES = ["llama", "gemma2", "gpt_neox", "opt"]
BYTE = "int8:token:asym"


@functools.cache
def captured(family, dtype=torch.float32):
    model = causal_lm(family, dtype)
    return model, pipeline.capture(model)


@functools.cache
def traced(family, recipe, dtype=torch.float32):
    return pipeline.run(captured(family, dtype)[1], Recipe.parse(recipe), load_target("reference"))


def built(family, recipe, dtype=torch.float32):
    """The model on the QUANTISED program, whose cache is float, and the compiled one."""
    model, trace = captured(family, dtype)[0], traced(family, recipe, dtype)
    quantised, lowered = trace["QUANTISED"], trace["LOWERED"]
    target = load_target("reference")
    return [pipeline.rebuild(model, one.call, target.build(one)) for one in (quantised, lowered)]


def kinds(program):
    return [op_name(node.target) for node in program.nodes()]


def batch(rows=2, length=7):
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, :3] = 0
    return {"input_ids": torch.randint(2, 250, (rows, length)), "attention_mask": mask}


def steps(model, given):
    """Logits of a prefill in two chunks, a decode step, and one more after the cache was cut and its rows chosen."""
    ids, mask = given["input_ids"], given["attention_mask"]
    cache, found = DynamicCache(), []
    for first, last in ((0, 4), (4, 6), (6, 7)):
        out = model(ids[:, first:last], attention_mask=mask[:, :last], past_key_values=cache)
        found.append(out.logits)
    cache.crop(-2)
    cache.batch_select_indices(torch.tensor([1, 0, 1]))
    picked, seen = ids[[1, 0, 1]], mask[[1, 0, 1]]
    found.append(model(picked[:, 5:7], attention_mask=seen[:, :7], past_key_values=cache).logits)
    return found, cache


CASES = [*((family, "w8a8-int8+qkv8") for family in FAMILIES), ("llama", "w8a8-int8+kv4"),
         ("qwen3", "w8a8-int8+qkv8p8")]  # fmt: skip


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_the_codes_are_the_quantised_program(family, recipe):
    given = batch()
    (want, plain), (got, held) = (steps(model, given) for model in built(family, recipe))
    for one, two in zip(want, got, strict=True):
        assert torch.equal(one, two)
    fmt = Format.parse("int4:token:asym" if "kv4" in recipe else BYTE)
    for one, two in zip(plain.layers, held.layers, strict=True):
        for kept, rows in ((one.keys, two.keys), (one.values, two.values)):
            assert rows.dtype is torch.int8
            assert rows.shape == (*kept.shape[:-1], kv_rows.width(fmt, kept.shape[-1]))
            assert torch.equal(kv_rows.unpack(rows, fmt, kept.shape[-1], kept.dtype), ops.fake_quantize(kept, str(fmt)))
    fused = traced(family, recipe)["FUSED"]
    assert kinds(fused).count("qpass.kv_rows") == 4
    assert kinds(fused).count("qpass.kv_attention") == (0 if "p8" in recipe else 2)
    assert kinds(fused).count("qpass.kv_unpack") == (4 if "p8" in recipe else 0)
    assert [spec.dtype for spec in fused.call.kv] == [torch.int8] * 4


@pytest.mark.parametrize("attention", [{"k": "e4m3:token:sym", "v": "int4:g8:asym:f32"}, {"k": BYTE}, {"v": "mxfp8"}])
def test_formats_of_one_operand_and_of_groups(attention):
    attention = {name: "e4m3:g16:sym:e8m0" if form == "mxfp8" else form for name, form in attention.items()}
    recipe = Recipe.parse({"linears": {"*": "keep"}, "attention": {"*": attention}})
    model, program = captured("llama", torch.bfloat16)
    trace = pipeline.run(program, recipe, load_target("reference"))
    target = load_target("reference")
    models = [pipeline.rebuild(model, trace[stage].call, target.build(trace[stage])) for stage in
              ("QUANTISED", "LOWERED")]  # fmt: skip
    given = batch()
    (want, _), (got, held) = (steps(one, given) for one in models)
    assert all(torch.equal(one, two) for one, two in zip(want, got, strict=True))
    layer = held.layers[0]
    assert (layer.keys.dtype is torch.int8) == ("k" in attention)
    assert (layer.values.dtype is torch.int8) == ("v" in attention)
    both = len(attention) == 2
    assert kinds(trace["FUSED"]).count("qpass.kv_attention" if both else "qpass.kv_unpack") == 2


@pytest.mark.parametrize("mode", [
    {"do_sample": False}, {"do_sample": True, "top_k": 20}, {"num_beams": 3}, {"prefill_chunk_size": 4},
    {"do_sample": True, "num_return_sequences": 2},
], ids=lambda mode: "-".join(mode))  # fmt: skip
def test_generate(mode):
    given, results = batch(), []
    for model in built("llama", "w8a8-int8+qkv8"):
        torch.manual_seed(3)
        results.append(model.generate(**given, max_new_tokens=6, **mode))
    assert torch.equal(*results)


def test_a_cache_of_another_model_is_refused():
    plain, coded = built("llama", "w8a8-int8+qkv8")
    cache = plain(**batch()).past_key_values
    mask = torch.ones(2, 8, dtype=torch.int64)
    with pytest.raises(InputError, match="the compiled model takes int8"):
        coded(torch.tensor([[5], [6]]), attention_mask=mask, past_key_values=cache)


def planned(change=None, recipe="w8a8-int8+kv8"):
    """A PLANNED program of a tiny model whose graph ``change`` has edited before."""
    program = traced("llama", "w8a8-int8")["RAISED"]
    graph, _ = pipeline_copy(program.graph)
    updates = [node for node in graph.nodes if node.target is ops.cache_update]
    if change is not None:
        change(graph, updates)
    made = replace(program, graph=graph)
    return plan_program(made, Recipe.parse(recipe), load_target("reference"))


def pipeline_copy(graph):
    from qpass.graph.program import copy_graph

    return copy_graph(graph)


def read_elsewhere(graph, updates):
    with graph.inserting_after(updates[0]):
        made = graph.call_function(torch.ops.aten.relu.default, (updates[0],))
    made.meta = {**updates[0].meta, "name": "relu"}
    users = [user for user in updates[0].users if user.target is ops.attention]
    users[0].args = (users[0].args[0], made, *users[0].args[2:])


def past_read_elsewhere(graph, updates):
    past = updates[0].args[0]
    with graph.inserting_before(updates[0]):
        made = graph.call_function(torch.ops.aten.relu.default, (past,))
    made.meta = {**past.meta, "name": "relu"}


def not_handed_back(graph, updates):
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = (tuple(updates[2] if arg is updates[0] else arg for arg in output.args[0]),)


@pytest.mark.parametrize(("change", "reason"), [
    (read_elsewhere, "k in float: made by relu, not read from a cache"),
    (past_read_elsewhere, "k in float: it is read in float by relu"),
    (not_handed_back, "k in float: it is not what the next call gets as its past"),
])  # fmt: skip
def test_why_a_cache_stays_in_float(change, reason):
    program = planned(change)
    nodes = [node for node in program.nodes(ops.attention)]
    first, second = (node.meta["attention"] for node in nodes)
    assert reason in first.computed and "k" not in first.coded and first.coded == ("v",)
    assert change is not_handed_back or second.coded == ("k", "v")


def test_readers_of_two_formats():
    program = planned()
    update = next(node for node in program.graph.nodes if node.target is ops.cache_update)
    reader = next(user for user in update.users if user.target is ops.attention)
    with program.graph.inserting_after(reader):
        other = program.graph.call_function(ops.fake_quantize, (update, "int4:token:asym"))
    other.meta = {**update.meta, "name": "other"}
    assert refusal(program.graph, program.call, update) == "its readers ask for 2 formats"


def test_calls_without_a_cache_of_ours():
    """No call, as in the backend of ``torch.compile``: nothing changes, and the plan says why."""
    program = replace(planned(), call=None)
    update = next(node for node in program.graph.nodes if node.target is ops.cache_update)
    assert "by qpass.compile" in refusal(program.graph, program.call, update)
    recipe = Recipe.parse({"linears": {"*": "keep"}, "attention": "kv8"})
    small = plan_program(tiny.raised(), recipe, load_target("reference"))
    choice = next(node.meta["attention"] for node in small.nodes(ops.attention))
    assert choice.coded == () and "k in float: made by" in choice.computed
    fused = fuse(pipeline.quantise(small))
    assert cache_codes(fused) is fused


def test_the_plan_has_the_bytes():
    text = str(traced("llama", "w8a8-int8+qkv8").plan)
    assert "model.layers.0-1.self_attn" in text
    assert "kv_attention on codes in the cache: 128 bytes a token, 256 in float" in text
    log = [str(line.what) for line in traced("llama", "w8a8-int8+qkv8")["FUSED"].log if line.by == "cache_codes"]
    assert log == ["32 bytes a token of a head"] * 4


def test_bytes_of_usual_heads():
    """A little more than half of bfloat16."""
    for width in (64, 128):
        share = kv_rows.width(Format.parse(BYTE), width) / (2 * width)
        assert 0.5 < share < 0.63


def test_sizes_stay_symbols_where_linears_are_merged() -> None:
    """Types are worked out again behind the views of a merged linear, among them those of rows of codes."""
    pytest.importorskip("triton")
    recipe = Recipe.parse({"linears": {"*": "w8a8-int8"}, "attention": "kv8"})
    lowered = pipeline.run(captured("llama")[1], recipe, load_target("cuda"))["LOWERED"]
    ids, *_, cache = [node.meta["val"] for node in lowered.placeholders()]
    assert cache.dtype is torch.int8
    assert all(isinstance(size, torch.SymInt) and size.node.expr.is_Symbol for size in (*ids.shape, cache.shape[0]))
