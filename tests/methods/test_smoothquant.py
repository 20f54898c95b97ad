"""SmoothQuant's numbers, which sites it takes, and that it helps where activations have outliers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass.errors import RecipeError
from qpass.lowering.reference import target
from qpass.methods import METHODS, Method, as_data, make, options
from qpass.methods.smoothing import balance, weight_max
from qpass.methods.smoothquant_free import made_size
from qpass.passes.plan import plan_program
from qpass.recipe import Recipe
from qpass.sites import Analysis
from tests import tiny
from tests.sites import written

ACT, WEIGHT = torch.tensor([16.0, 4, 1, 0]), torch.tensor([0.25, 1, 1, 0.4])


def planned(style="rms", recipe="w8a8-int8", dtype=torch.float32):
    return plan_program(tiny.raised(style, dtype=dtype), Recipe.parse(recipe), target)


def sites(style="rms"):
    return [written.qkv(0, style), written.mlp_in(1, style), written.v_to_o(0, style)]


def data(*batches):
    return lambda: [(batch,) for batch in batches]


@pytest.mark.parametrize(
    ("alpha", "want"), [(0.5, [8, 2, 1, 0.005]), (0.75, [11.3137, 2.8284, 1, 2.236e-4]), (1.0, [16, 4, 1, 1e-5])]
)
def test_g12(alpha, want):
    torch.testing.assert_close(balance(ACT, WEIGHT, alpha), torch.tensor(want).double(), rtol=1e-4, atol=0)


def test_a_channel_that_meets_no_weight_stays():
    assert balance(torch.ones(2), torch.tensor([0.0, 1.0]), 0.5)[0] == 1


def test_weights_are_taken_over_all_consumers():
    program, site = planned(), written.qkv()
    want = torch.stack([program.tensor(axis.param).abs().amax(0) for axis in site.columns]).amax(0)
    assert torch.equal(weight_max(program, site), want)


def test_only_the_part_that_a_site_touches_counts():
    program, site = planned(), written.up_to_down()
    few = replace(site.columns[0], where=((0, torch.tensor([1, 3])),))
    site = replace(site, axes=(site.axes[0], few))
    assert torch.equal(weight_max(program, site), program.tensor(few.param)[[1, 3]].abs().amax(0))
    part = replace(site.columns[0], where=((1, torch.arange(5)),))
    found = weight_max(program, replace(site, axes=(site.axes[0], part)))
    assert bool((found[:5] > 0).all()) and bool((found[5:] == 0).all())


def test_tied_channels_share_the_maximum():
    program, site = planned(), written.v_to_o()
    columns = program.tensor("layers.0.attn.o_proj.weight").abs().amax(0)
    want = columns.view(tiny.KV, -1, tiny.D).amax(1).reshape(-1)
    assert torch.equal(weight_max(program, site), want)


def test_the_whole_formula():
    program, site = planned(), written.qkv()
    ids = [tiny.ids(), tiny.ids(3, 7)]
    (fold,) = make("smoothquant", {"alpha": 0.75}).solve(program, Analysis((site,)), data(*ids)).edits
    seen = torch.stack([norm_output(program, batch) for batch in ids]).amax(0)
    torch.testing.assert_close(fold.scale, balance(seen, weight_max(program, site), 0.75))


def norm_output(program, ids):
    x = torch.nn.functional.embedding(ids, program.tensor("embed.weight"))
    return torch.ops.qpass.rms_norm(x, program.tensor("layers.0.norm1.weight"), 1e-6).abs().amax((0, 1))


def test_sites_that_gain_nothing_are_reported():
    program = planned(recipe={"linears": {"*.1.mlp.*": "keep", "*o_proj": "w8a16", "*": "w8a8-int8"}})
    solution = make("smoothquant").solve(program, Analysis(tuple(sites())), data(tiny.ids()))
    assert [edit.site.name for edit in solution.edits] == [sites()[0].name]
    assert [note.what for note in solution.notes] == [
        "skipped: its consumers all stay in float: nothing to gain",
        "skipped: its consumers take float inputs: nothing to gain",
    ]


@pytest.mark.parametrize(
    ("given", "count"),
    [({"kinds": "linear-norm"}, 2), ({"exclude": ["*v_proj"]}, 1), ({"include": "layers.0.*"}, 2), ({}, 3)],
)
def test_options_choose_sites(given, count):
    solution = make("smoothquant", given).solve(planned(), Analysis(tuple(sites())), data(tiny.ids()))
    assert len(solution.edits) == count


def test_a_glob_that_matches_nothing():
    with pytest.raises(RecipeError, match=r"'\*.v_projj' matches no parameter of a site \(at smoothquant\). Fix: use"):
        make("smoothquant", {"include": ["*.v_projj"]}).solve(planned(), Analysis(tuple(sites())), data(tiny.ids()))


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
def test_without_data(style):
    program = planned(style)
    method = make("smoothquant-free")
    solution = method.solve(program, Analysis(tuple(sites(style))), None)
    assert len(solution.edits) == 3 and not method.needs_data
    norm = program.tensor("layers.0.norm1.weight") + (1 if style == "offset" else 0)
    bias = program.tensor("layers.0.norm1.bias").abs() if style == "layer" else 0
    torch.testing.assert_close(made_size(program, written.qkv(0, style)), norm.abs() + bias)
    rows = program.tensor("layers.0.attn.v_proj.weight").norm(dim=1)
    bias = program.tensor("layers.0.attn.v_proj.bias").abs() if style == "layer" else 0
    torch.testing.assert_close(made_size(program, written.v_to_o(0, style)), rows + bias)


def test_registry():
    for name, kind in METHODS.items():
        method = make(name)
        assert isinstance(method, Method) and method.name == name and options(method) == {} and as_data(method) == name
        assert kind.__doc__ and len(__import__(kind.__module__, fromlist=["x"]).__doc__) > 100
    assert as_data(make("smoothquant", {"alpha": 0.75, "exclude": "a"})) == {
        "smoothquant": {"alpha": 0.75, "exclude": ["a"]}
    }


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("smothquant", {}, "unknown method 'smothquant'. Fix: use 'smoothquant'."),
        ("smoothquant", {"alfa": 1}, "unknown option 'alfa' (at method smoothquant). Fix: use 'alpha'."),
        ("smoothquant", {"alpha": 2}, "alpha is 2 (at smoothquant). Fix: use a number from 0 to 1."),
        ("smoothquant", {"alpha": "high"}, "alpha is 'high'"),
        ("smoothquant", {"kinds": ["linear-nrm"]}, "kind of site 'linear-nrm' (at smoothquant). Fix: use 'linea"),
        ("smoothquant", {"include": 3}, "an option has the wrong type"),
    ],
)
def test_mistakes(name, given, message):
    with pytest.raises(RecipeError) as error:
        make(name, given)
    assert message in str(error.value)
