"""Attention on rounded operands while blocks learn: what is learned there is what the QUANTISED program computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass import ops
from qpass.formats import AttentionScheme
from qpass.learn.block import _fake_operand
from qpass.learn.checkpoint import facts_of
from qpass.learn.fold import FoldedBlock, fold
from qpass.observe.walk import walk
from qpass.passes.quantise import quantise
from qpass.sites.edits import apply
from qpass.sites.verify import relative_error, run_in
from qpass.stages import check
from tests import tiny
from tests.learn.helpers import batches, block, first_view, notes, planned, recipe, solved
from tests.learn.test_loop import block_inputs
from tests.sites import models

LET = [{"let": {"kinds": ["parallel linear-linear"]}}]


def all_values(program, *inputs):
    """Every value of a run, by name."""
    env = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = inputs[len([one for one in env if one.op == "placeholder"])]
        elif node.op == "get_attr":
            env[node] = program.tensor(node.target)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
    return {node.meta["name"]: value for node, value in env.items()}


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
@pytest.mark.parametrize("attention", ["qkv4", "qkv6p6"])
def test_what_was_learned_is_the_quantised_program(style, attention):
    """Student with its leaves, deployed block, and the block's part of the QUANTISED program, on the same inputs."""
    made = recipe(["lwc", "let"], "w8a8-int8", attention)
    model = block(tiny.raised(style), made)
    for method in made.methods:
        method.attach(model, {})
    model.ready()
    torch.manual_seed(0)
    for leaf in model.leaves.values():
        leaf.data += 0.2 * torch.randn(leaf.shape)
    inputs, segment = block_inputs(model, [tiny.ids(2, 9)]), model.view.segment
    leaves = {key: leaf.detach() for key, leaf in model.leaves.items()}
    student = model.student(inputs, leaves)
    folded = fold(model.view.program, model, leaves, add_bias=False, by="test")
    edited = apply(model.view.program, folded.edits)
    program = replace(edited, params={**edited.params, **folded.params}, stage="SOLVED")
    deployed = FoldedBlock(program, segment, model.view.linears, attentions=model.view.attentions).run(inputs)
    quantised = all_values(check(quantise(program)), tiny.ids(2, 9))
    for name in segment.results:
        assert relative_error(deployed[name], student[name]) < 1e-4
        assert relative_error(quantised[name], deployed[name]) < 1e-4
    other = block(tiny.raised(style), recipe(["lwc", "let"], "w8a8-int8"))
    (name,) = segment.results
    assert relative_error(other.student(inputs, None)[name], model.student(inputs, None)[name]) > 1e-3


@pytest.mark.parametrize("attention", ["qkv4", "qkv8p8"])
def test_gradients_are_straight_through(attention):
    """They point where those of float attention point, through every operand and p."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8, generator=draw).requires_grad_() for _ in range(3))
    scheme = AttentionScheme.parse(attention)
    args = (q, k, v, None, False, 0.3)
    with torch.enable_grad():
        out, plain = (ops.attend(ops.attention, args, one, _fake_operand) for one in (scheme, None))
        found, wanted = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (out, plain))
    assert relative_error(out.detach(), ops.attend(ops.attention, args, scheme).detach()) < 1e-5
    for one, two in zip(found, wanted):
        assert float(torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), 0)) > 0.9


def test_the_site_of_q_and_k_improves():
    """Behind a bad scale on q and k, LET at that site alone brings the block back, and the function stays."""
    program = tiny.raised("rms")
    draw = torch.Generator().manual_seed(0)
    factor = torch.exp(1.5 * torch.randn(tiny.KV * tiny.D // 2, generator=draw)).reshape(tiny.KV, 1, -1)
    factor = factor.expand(-1, 2, -1).reshape(-1)  # rotary pairs
    k, q = "layers.0.attn.k_proj.weight", "layers.0.attn.q_proj.weight"
    groups = factor.reshape(tiny.KV, -1).repeat_interleave(tiny.HEADS // tiny.KV, 0).reshape(-1)
    worse = {k: program.tensor(k) * factor[:, None], q: program.tensor(q) / groups[:, None]}
    program = replace(program, params={**program.params, **worse})
    made = recipe([{"let": {"kinds": ["parallel linear-linear"], "rate": 0.05}}], "w8a8-int8", "qkv4", epochs=30)
    ready, after = planned(program, made), solved(program, made)
    line = next(line for line in notes(after, "loss") if line.startswith("layers.0"))
    before, best = (float(word) for word in line.split("loss ")[1].split(" of round to nearest -> "))
    assert best < 0.8 * before
    one, two = (run_in(each, torch.float64, tiny.ids(2, 9)) for each in (ready, after))
    assert relative_error(one[0], two[0]) < 1e-9


def test_scales_of_normed_queries_and_keys_are_learned():
    """A site that no linear is part of, but an attention with formats is."""
    program = models.program("qwen3")
    plain, view = (first_view(program, recipe(LET, "w8a8-int8", attention)) for attention in (None, "qkv4"))
    assert not plain.attended and view.attended
    learned, quiet = (made.methods[0].mine(one) for one, made in
                      ((view, recipe(LET, "w8a8-int8", "qkv4")), (plain, recipe(LET, "w8a8-int8"))))  # fmt: skip
    assert any("q_norm" in axis.param for site in learned for axis in site.axes)
    assert not any("q_norm" in axis.param for site in quiet for axis in site.axes)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_presets_on_architectures(name):
    made = recipe(["lwc", "let"], {"lm_head": "keep", "*": "w4a4"}, "qkv4", epochs=2)
    draw = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(3, models.V, (2, 6), generator=draw)} for _ in range(2)]
    after = solved(models.program(name), made, data)
    ready = planned(models.program(name), made)
    one, two = (run_in(each, torch.float64, *models.inputs(name)) for each in (ready, after))
    assert relative_error(one[0], two[0]) < 1e-9
    assert notes(after, "loss")
    check(quantise(after))


def test_a_checkpoint_knows_the_formats():
    facts = [facts_of(planned(tiny.raised(), recipe([], "w8a8-int8", word)), [], [], {})["graph"]
             for word in (None, "qkv4", "qkv8")]  # fmt: skip
    assert len(set(facts)) == 3


def test_the_walk_of_weights_sees_rounded_attention():
    """GPTQ's inputs of the linear behind an attention are those of the rounded one."""
    sums = []
    for word in (None, "qkv4"):
        seen = {}
        walk(planned(tiny.raised(), recipe([], "w8a16", word)), batches(1),
             lambda layer, seen=seen: seen.setdefault(layer.name, (layer.value, layer.inputs))[0])  # fmt: skip
        sums.append({name: inputs for name, (_, inputs) in seen.items()})
    first, behind = "layers.0.attn.q_proj.weight", "layers.0.attn.o_proj.weight"
    assert torch.equal(sums[0][first].hessian, sums[1][first].hessian)
    assert not torch.equal(sums[0][behind].hessian, sums[1][behind].hessian)
