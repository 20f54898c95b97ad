"""A walk shows every weight its inputs as the quantized program computes them; that program is the oracle."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from qpass import pipeline
from qpass.errors import InputError, NumericsError
from qpass.formats import Format
from qpass.graph.program import copy_graph
from qpass.lowering.reference import target
from qpass.numerics import codec
from qpass.observe import walk as module
from qpass.observe.walk import walk
from qpass.passes.calibrate import calibrate
from qpass.passes.plan import plan_program
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from tests import tiny

aten = torch.ops.aten
BATCHES = [(tiny.ids(),), (tiny.ids(3, 4),), (tiny.ids(1, 9),)]
DOUBLE = {"dtype": torch.float64}


def planned(recipe, style="rms", tied=False):
    return plan_program(tiny.raised(style, tied=tied), Recipe.parse(recipe), target)


def rounded(layer):
    return codec.fake_quantize(layer.value, layer.format).to(layer.value.dtype)


def seen(program, batches, **options):
    """What a walk gives, by weight, with round to nearest."""
    found = {}

    def solve(layer):
        found[layer.name] = layer
        return rounded(layer)

    walk(program, batches, solve, **DOUBLE, **options)
    return found


class Inputs(fx.Interpreter):
    """What the linears of a program read, by the name of their value."""

    def __init__(self, program):
        super().__init__(nn.Module(), graph=program.graph)
        self.program, self.found = program, {}

    def get_attr(self, name, args, kwargs):
        return self.program.tensor(name)

    def run_node(self, node):
        if node.target is aten.linear.default:
            self.found.setdefault(node.meta["name"], []).append(self.env[node.args[0]].double().flatten(0, -2))
        return super().run_node(node)


def inputs(program, batches):
    interpreter = Inputs(program)
    for batch in batches:
        interpreter.run(*batch)
    return {name.removesuffix(".weight"): torch.cat(parts) for name, parts in interpreter.found.items()}


def linear_of(weight):
    return weight.removesuffix(".weight")


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
@pytest.mark.parametrize("recipe", ["int4:g8:asym", "int4:g8:sym x int8:token:asym", "e2m1:g8:sym:m2 x e4m3:token:sym"])
def test_inputs_are_those_of_the_quantized_program(style, recipe):
    program = planned(recipe, style)
    found, want = seen(program, BATCHES), inputs(quantise(program), BATCHES)
    assert len(found) == len(want) == (13 if style == "layer" else 15)
    assert list(found) == list(dict.fromkeys(node.meta["plan"].weight for node in program.nodes(aten.linear.default)))
    for weight, layer in found.items():
        x = want[linear_of(weight)]
        assert layer.rows == len(x) == 10 + 12 + 9 and layer.inputs.cross is None
        torch.testing.assert_close(layer.inputs.hessian, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)


def test_static_inputs():
    """With the program's own scales where it has them; else with those of the values in the batches."""
    recipe = "int8:channel:sym x int8:tensor:asym:static"
    program = planned(recipe)
    solved = calibrate(program, Recipe.parse(recipe), BATCHES)
    want = inputs(quantise(solved), BATCHES)
    for weight, layer in seen(solved, BATCHES).items():
        x = want[linear_of(weight)]
        torch.testing.assert_close(layer.inputs.hessian, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)
    found = seen(program, BATCHES)["layers.0.attn.q_proj.weight"]
    x = inputs(program, BATCHES)["layers.0.attn.q_proj"]
    scale, zero = codec.row_scales(x.amin().float(), x.amax().float(), Format.parse("int8:tensor:asym:static"))
    x = (torch.round(x.float() / scale) + zero).clamp(0, 255).sub(zero).mul(scale).double()
    torch.testing.assert_close(found.inputs.hessian, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)


def test_inputs_may_stay_as_they_are():
    program = planned("int4:g8:sym x int4:token:asym")
    found, want = seen(program, BATCHES, quantize_inputs=False), inputs(quantise(planned("int4:g8:sym")), BATCHES)
    for weight, layer in found.items():
        x = want[linear_of(weight)]
        torch.testing.assert_close(layer.inputs.hessian, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)


def test_a_float_stream_beside():
    program = planned("int4:g8:sym x int8:token:asym")
    found = seen(program, BATCHES, asymmetric=True)
    want, floats = inputs(quantise(program), BATCHES), inputs(program, BATCHES)
    for weight, layer in found.items():
        x, moved = want[linear_of(weight)], floats[linear_of(weight)] - want[linear_of(weight)]
        for got, sums in zip(layer.inputs, (x.T @ x, moved.T @ x, moved.T @ moved)):
            torch.testing.assert_close(got, 2 / len(x) * sums, rtol=1e-4, atol=1e-5)


def test_linears_that_share_an_input_share_its_moment():
    found = seen(planned("w4a16-g8"), BATCHES)
    q, k, v, o = (found[f"layers.0.attn.{name}_proj.weight"].inputs.hessian for name in "qkvo")
    assert q is k and k is v and o is not v


def test_one_input_in_two_formats_has_two_moments():
    recipe = {"linears": {"*.q_proj": "int8:channel:sym x int4:token:asym", "*": "int4:g8:sym"}}
    program = planned(recipe)
    found, want = seen(program, BATCHES), inputs(quantise(program), BATCHES)
    assert len(found) == 15
    for weight, layer in found.items():
        x = want[linear_of(weight)]
        torch.testing.assert_close(layer.inputs.hessian, 2 / len(x) * x.T @ x, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """One linear, used twice, and one behind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(torch.relu(self.one(x)))))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_weight_of_several_linears_sees_all_their_inputs(asymmetric):
    model, batches = Twice().eval(), [torch.randn(3, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    program = pipeline.trace(model, "int4:g4:sym", (batches[0],), target="reference", until="PLANNED")["PLANNED"]
    found = seen(program, batches, asymmetric=asymmetric)
    assert list(found) == ["one.weight", "two.weight"] and found["one.weight"].rows == 12
    x = torch.cat(batches)
    first = torch.relu(model.one(x))  # until its own turn, the weight computes as it is
    both = torch.cat((x, first)).double()
    torch.testing.assert_close(found["one.weight"].inputs.hessian, 2 / 12 * both.T @ both, rtol=1e-5, atol=1e-6)
    behind = torch.relu(F.linear(first, rounded(found["one.weight"]), model.one.bias)).double()
    torch.testing.assert_close(found["two.weight"].inputs.hessian, 2 / 6 * behind.T @ behind, rtol=1e-5, atol=1e-6)


def test_kept_and_tied_linears_are_not_shown():
    found = seen(planned({"linears": {"*.attn.*": "keep", "*": "w4a16-g8"}}), BATCHES)
    assert not any("attn" in name for name in found) and len(found) == 7
    tied = planned("w4a16-g8", tied=True)
    assert "embed.weight" not in seen(tied, BATCHES[:1]) and "head.weight" not in seen(tied, BATCHES[:1])
    assert seen(planned({"linears": {"*": "keep"}}), []) == {}


def counted(program):
    """The program, and the names of the linears it computes, as they come."""
    ran, graph = [], copy_graph(program.graph)[0]
    for node in graph.nodes:
        if node.target is aten.linear.default:
            node.target = functools.partial(lambda name, *args: ran.append(name) or F.linear(*args), node.meta["name"])
    return replace(program, graph=graph), ran


def test_nothing_runs_that_no_weight_needs():
    program, ran = counted(planned({"linears": {"layers.0.mlp.*": "w4a16-g8", "*": "keep"}}))
    found = seen(program, BATCHES[:1])
    assert len(found) == 3
    assert ran == [f"layers.0.{name}_proj" for name in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up")]


def test_little_is_held_where_a_weight_is_solved(monkeypatch):
    """Per batch: constants of the batch's shape, the residual stream, and an input or q, k and v."""
    held, whole = [], module._State.solve

    def solve(self, *args):
        for stream in self.streams:
            tensors = [value for value in stream.values.values() if isinstance(value, torch.Tensor)]
            held.append(sum(value[0, 0].numel() for value in tensors if value.is_floating_point() and value.dim() == 3))
            assert not stream.rounded
        assert len(self.solved) <= 3 and (len(self.params) <= 1 or self.floats)
        return whole(self, *args)

    monkeypatch.setattr(module._State, "solve", solve)
    seen(planned("w4a16-g8"), BATCHES)
    assert max(held) <= 2 * tiny.H + tiny.FFN and len(held) == 3 * 15


def test_progress_and_iterators():
    done = []
    walk(planned("w4a16-g8"), iter(BATCHES), rounded, progress=lambda *args: done.append(args))
    assert done == [(count, 15) for count in range(1, 16)]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.two(torch.log(self.one(x).abs()))


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8-int8"])
def test_mistakes(scheme):
    model = Model().eval()
    program = pipeline.trace(model, scheme, (torch.randn(3, 4),), target="reference", until="PLANNED")["PLANNED"]
    good, broken = torch.randn(2, 4), torch.randn(2, 4)
    broken[1, 2] = float("nan")
    for batches, message in (
        ([], "there is no calibration batch"),
        ([good, torch.randn(2, 5)], "(at calibration batch 1)"),
        ([good, good, {"y": good}], "(at calibration batch 2)"),
    ):
        with pytest.raises(InputError) as error:
            walk(program, batches, rounded)
        assert message in str(error.value)
    with pytest.raises(NumericsError) as failure:
        walk(program, [good, broken], rounded)
    assert "NaN or Inf in" in str(failure.value) and "(at calibration batch 1, %x)" in str(failure.value)
    zero = Model().eval()
    nn.init.zeros_(zero.one.weight)
    nn.init.zeros_(zero.one.bias)
    program = replace(program, params={**program.params, "one.weight": zero.one.weight, "one.bias": zero.one.bias})
    with pytest.raises(NumericsError) as failure:
        walk(program, [good], rounded)
    assert "(at calibration batch 0, %log)" in str(failure.value)


def test_formats_are_without_their_branch():
    found = seen(planned("int4:g8:sym:bf16:r2"), BATCHES[:1])
    assert {layer.format for layer in found.values()} == {Format.parse("int4:g8:sym")}
