"""The whole loop: what it learns is exact before rounding, is folded as trained, and never makes a block worse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from qpass.errors import InputError, NumericsError, OutputError, RecipeError, UnsupportedError
from qpass.learn import fit as fit_module
from qpass.learn.block import BlockModel
from qpass.learn.fold import FoldedBlock, fold
from qpass.lowering.reference import target
from qpass.methods import make
from qpass.observe import store
from qpass.passes.plan import summarise
from qpass.passes.quantise import quantise
from qpass.sites.edits import apply
from qpass.sites.verify import relative_error, run_in
from tests import tiny
from tests.learn.helpers import W3, W4A4, block, first_view, notes, planned, recipe, solved
from tests.sites import models

STYLES = ("rms", "offset", "layer")
ARCHITECTURES = ("llama", "opt", "qwen3", "gemma", "mixtral", "bert", "gpt_neox")
METHODS = {"lwc": ["lwc"], "let": ["let"], "omniquant": ["lwc", "let"], "fsbr": ["lwc", "fsbr"],
           "lkd": [{"lkd": {"rate": 1e-3}}]}  # fmt: skip


def float_error(before, after, *inputs):
    """How far the learned edits moved the float function, in float64; weights that were learned themselves aside."""
    one, two = (run_in(program, torch.float64, *inputs) for program in (before, after))
    return relative_error(one[0], two[0])  # the others are caches, which may hold re-scaled keys and values


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", ["omniquant", "fsbr", "let"])
def test_the_float_function_stays(style, method):
    made = recipe(METHODS[method])
    ready = planned(tiny.raised(style), made)
    after = solved(tiny.raised(style), made)
    assert float_error(ready, after, tiny.ids(2, 9)) < 1e-9
    assert len(notes(after, "loss")) + len(notes(after, "rolled back")) == 2


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", METHODS)
def test_blocks_get_better_or_stay(style, method):
    after = solved(tiny.raised(style), recipe(METHODS[method], W3 if method == "lwc" else W4A4, epochs=15))
    for line in notes(after, "loss"):
        if "rolled back" not in line:
            rtn, best = (float(word) for word in line.split("loss ")[1].split(" of round to nearest -> "))
            assert best < rtn
    assert any("rolled back" not in line for line in notes(after, "loss"))


@pytest.mark.parametrize(("name", "method"), [
    *((name, "omniquant") for name in ARCHITECTURES),
    *(pytest.param(name, "fsbr", marks=() if name in ("llama", "opt") else pytest.mark.slow) for name in ARCHITECTURES),
])  # fmt: skip
def test_architectures(name, method):
    made = recipe(METHODS[method], {"lm_head": "keep", "*": W4A4} if name != "bert" else W4A4, epochs=2)
    ready = planned(models.program(name), made)
    draw = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(3, models.V, (2, 6), generator=draw)} for _ in range(2)]
    after = solved(models.program(name), made, data)
    assert float_error(ready, after, *models.inputs(name)) < 1e-9
    assert notes(after, "loss")
    quantise(after)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("methods", [["lwc", "let"], ["lwc", "fsbr"], ["lwc", {"let": {"bias": "keep"}}, "lkd"]])
@pytest.mark.parametrize("scheme", [W4A4, "w8a8-int8", W3])
def test_what_was_learned_is_what_is_folded(style, methods, scheme):
    """The student with its leaves, and the block that is deployed, on the same inputs; codes may differ at ties."""
    made = recipe(methods, scheme)
    check_folded(block(tiny.raised(style), made, smooth=True), made, [tiny.ids(2, 9)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_was_learned_is_what_is_folded_in_architectures(name):
    """Norms, biases, rotary pairs and activations of each; the router and the experts of Mixtral stay float."""
    made = recipe(["lwc", "fsbr", "lkd"], {"lm_head": "keep", "*": "w8a8-int8"} if name != "bert" else "w8a8-int8")
    model = block(models.program(name), made, smooth=True)
    check_folded(model, made, models.inputs(name))
    assert model.clips and model.places and model.trained


def check_folded(model, made, inputs):
    for method in made.methods:
        method.attach(model, {})
    model.ready()
    for leaf in model.leaves.values():
        leaf.data += 0.2 * torch.randn(leaf.shape) if leaf.numel() > 1 else 0
    inputs = block_inputs(model, inputs)
    leaves = {key: leaf.detach() for key, leaf in model.leaves.items()}
    student = model.student(inputs, leaves)
    folded = fold(model.view.program, model, leaves, add_bias=False, by="test")
    edited = apply(model.view.program, folded.edits)
    program = replace(edited, params={**edited.params, **folded.params})
    deployed = FoldedBlock(program, model.view.segment, model.view.linears).run(inputs)
    for name in model.view.segment.results:
        assert relative_error(deployed[name], student[name]) < 1e-4


def test_experts_are_quantized_and_routers_are_not():
    made = recipe(["lwc"], {"lm_head": "keep", "*": "w8a8-int8"})
    plan = summarise(planned(models.program("mixtral"), made), made, target)
    quantized = [name for name, choice in plan.choices if choice.scheme is not None]
    assert len([name for name in quantized if "self_attn" in name]) == 4
    assert [name.rpartition(".")[2] for name in quantized if "experts" in name] == ["gate_up_proj", "down_proj"]
    assert len(quantized) == 6 and "it chooses experts" in str(plan) and not plan.unseen


def block_inputs(model, inputs):
    """Values that the first block reads, from a run of the whole program."""
    program, wanted, found = model.view.program, set(model.view.segment.inputs), {}
    env, given = {}, iter(inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "get_attr":
            env[node] = program.tensor(node.target)
        elif node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
        if node.meta.get("name") in wanted:
            found[node.meta["name"]] = env[node]
        if len(found) == len(wanted):
            return found
    raise AssertionError


def test_without_factors_nothing_changes():
    """G7: s = 1, δ = 0 and an open range are round to nearest, but for zero points that the stored scale moves."""
    made = recipe([{"lwc": {"start": 100.0}}, {"let": {"start": "ones"}}], "w8a8-int8")
    model = block(tiny.raised("rms"), made)
    for method in made.methods:
        method.attach(model, {})
    model.ready()
    inputs = block_inputs(model, [tiny.ids(2, 9)])
    leaves = {key: leaf.detach() for key, leaf in model.leaves.items()}
    (name,) = model.view.segment.results
    assert torch.equal(model.student(inputs, leaves)[name], model.student(inputs, None)[name])


def test_a_block_with_a_rate_too_high_is_rolled_back():
    after = solved(tiny.raised(), recipe([{"let": {"rate": 50.0, "start": "ones"}}], "w8a8-int8", epochs=3))
    assert all("rolled back" in line for line in notes(after, "rolled back")) and notes(after, "rolled back")
    plain = quantise(solved(tiny.raised(), recipe([], "w8a8-int8")))
    other = quantise(after)
    back = [line.split(":")[0] for line in notes(after, "rolled back")]
    for name in plain.used_params():
        if name.startswith(tuple(back)):
            assert torch.equal(plain.tensor(name), other.tensor(name))


def test_steps_that_are_not_finite_halve_the_rates(monkeypatch):
    real, seen = fit_module.Loss.__call__, []

    def broken(self, outputs, example):
        seen.append(torch.is_grad_enabled())
        value = real(self, outputs, example)
        return value * float("nan") if seen[-1] and sum(seen) in (2, 5) else value

    monkeypatch.setattr(fit_module.Loss, "__call__", broken)
    after = solved(tiny.raised(layers=2), recipe(["lwc"], W3, epochs=5))
    assert any("2 steps were not finite" in line for line in notes(after, "loss"))


def test_a_block_that_is_never_finite_is_given_up(monkeypatch):
    real = fit_module.Loss.__call__
    monkeypatch.setattr(fit_module.Loss, "__call__", lambda self, outputs, example: real(self, outputs, example) * (
        float("nan") if torch.is_grad_enabled() else 1.0))  # fmt: skip
    after = solved(tiny.raised(), recipe(["lwc"], W3, epochs=20, halvings=2))
    assert len(notes(after, "rolled back")) + len(notes(after, "loss")) >= 2


SETTINGS = ({"same_input": True}, {"inputs": "teacher"}, {"loss": "kl"}, {"schedule": "constant"},
            {"precision": "bfloat16"}, {"steps": 7}, {"cache_mib": 0}, {"shuffle": False})  # fmt: skip


@pytest.mark.parametrize("options", SETTINGS)
def test_settings(options):
    after = solved(tiny.raised(), recipe(["lwc"], W3, **options))
    assert notes(after, "loss")


def test_equal_runs_are_equal():
    one, two = (quantise(solved(tiny.raised(), recipe(["lwc", "let"]))) for _ in range(2))
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.used_params())


def test_the_cache_on_disk_changes_no_bit():
    one, two = (quantise(solved(tiny.raised(), recipe(["lwc"], W3, cache_mib=size))) for size in (0, 100))
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.used_params())


def test_ragged_batches_are_fine_where_the_program_takes_them():
    data = [tiny.ids(2, 5), tiny.ids(3, 9), tiny.ids(1, 7)]
    assert notes(solved(tiny.raised(), recipe(["lwc"], W3), data), "loss")


def test_under_inference_mode():
    with torch.inference_mode():
        assert notes(solved(tiny.raised(), recipe(["lwc"], W3)), "loss")


def test_bfloat16():
    after = solved(tiny.raised(dtype=torch.bfloat16), recipe(["lwc", "let"]))
    assert notes(after, "loss")
    quantised = quantise(after)
    assert quantised.run(tiny.ids())[0].dtype is torch.bfloat16


def test_after_another_method():
    after = solved(tiny.raised(), recipe(["smoothquant", "lwc"], "w8a8-int8"))
    assert notes(after, "loss")


def test_lkd_learns_the_weights():
    lines = {"@attention": "w8a8-int8-sym", "@feed-forward": "int4:channel:sym x int8:token:sym"}
    made = recipe([{"lkd": {"rate": 3e-3}}], lines, inputs="teacher", epochs=20)
    after = solved(tiny.raised(), made)
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(after.tensor(name), tiny.raised().tensor(name))
    quantised = quantise(after)
    assert torch.equal(quantised.tensor(f"{name}.codes"), after.tensor(f"{name}.codes"))


def test_shifts_with_added_biases():
    made = recipe(["lwc", {"let": {"bias": "add"}}])
    ready, after = planned(tiny.raised("rms"), made), solved(tiny.raised("rms"), made)
    assert float_error(ready, after, tiny.ids(2, 9)) < 1e-9
    added = [name for name in after.used_params() if name.endswith(".bias")]
    assert "layers.0.norm1.bias" in added and float(after.tensor("layers.0.norm1.bias").abs().max()) > 0


def test_fsbr_leaves_a_vector_at_run_time():
    after = solved(tiny.raised("rms"), recipe(["fsbr"], epochs=20))
    assert any(name.endswith(".smooth") for name in after.used_params())


@pytest.mark.parametrize(
    ("methods", "scheme", "data", "error", "message"),
    [
        (["lwc"], W3, [], InputError, "there is no calibration batch"),
        (["lwc"], "w8a8-fp8", None, RecipeError, "lwc has nothing to learn in 2 blocks"),
        (["let"], {"head": "w8a16"}, None, RecipeError, "let has nothing to learn"),
        (["lwc"], W3, [tiny.ids() + tiny.VOCAB], InputError, "(at calibration batch 0)"),
        ([{"let": {"include": ["*.nowhere"]}}], W4A4, None, RecipeError, "matches no parameter of a site"),
    ],
)
def test_mistakes(methods, scheme, data, error, message):
    with pytest.raises(error) as found:
        solved(tiny.raised(), recipe(methods, scheme), data)
    assert message in str(found.value)


def test_an_endless_stream():
    endless = (tiny.ids() for _ in itertools.count())
    with pytest.raises(InputError, match="more than 4096 batches, perhaps without end"):
        solved(tiny.raised(), recipe(["lwc"], W3), endless)

    class Endless:
        def __iter__(self):
            return (tiny.ids() for _ in itertools.count())

    after = solved(tiny.raised(), recipe(["lwc"], W3, batches=3), Endless())
    assert notes(after, "the first 3 batches were used")


def test_a_model_without_blocks():
    program = tiny.raise_ops(tiny.normalise(tiny.export(torch.nn.Sequential(
        torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)), torch.randn(2, 16))))  # fmt: skip
    with pytest.raises(UnsupportedError, match="no repeated block"):
        solved(program, recipe(["lwc"], W3), [torch.randn(2, 16)])


def test_values_that_are_not_finite():
    program = tiny.raised()
    bad = dict(program.params)
    bad["embed.weight"] = program.tensor("embed.weight").clone()
    bad["embed.weight"][5] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        solved(replace(program, params=bad), recipe(["lwc"], W3), [torch.full((1, 4), 5)])


def test_a_full_disk_leaves_the_checkpoint(tmp_path, monkeypatch):
    count, write = [0], store.write_tensors

    def full(path, *rest):
        count[0] += 1
        if count[0] > 12:
            raise OutputError("cannot write: No space left on device", where=str(path), fix="free some")
        write(path, *rest)

    monkeypatch.setattr(store, "write_tensors", full)
    made = recipe(["lwc"], W3, cache_mib=0, folder=str(tmp_path))
    with pytest.raises(OutputError, match="No space left"):
        solved(tiny.raised(), made)
    assert (tmp_path / "run.json").exists() and not list(tmp_path.glob("qpass-activations-*"))
    monkeypatch.undo()
    one = quantise(solved(tiny.raised(), made))
    two = quantise(solved(tiny.raised(), recipe(["lwc"], W3)))
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.used_params())


def test_a_view_holds_no_tensor_and_a_model_one_block():
    made = recipe(["lwc"], W3)
    view = first_view(tiny.raised(), made)
    model = BlockModel(view)
    assert set(model.base) == set(view.segment.params)
    assert make("lwc").reaches(view)
