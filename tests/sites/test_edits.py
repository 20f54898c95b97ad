"""Edits on hand-written sites: exact in float64, refused where they cannot be, and nothing computed too early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass.errors import InputError, NumericsError, UnsupportedError
from qpass.graph.program import Derived, copy_graph, materialise
from qpass.graph.show import show
from qpass.sites import analyse
from qpass.sites.edits import Fold, Shift, apply
from qpass.sites.site import Smooth
from qpass.sites.verify import relative_error, run_in
from qpass.stages import check
from tests import tiny
from tests.sites import written


def scale(site, seed=0):
    return torch.rand(site.size, generator=torch.Generator().manual_seed(seed)) * 2 + 0.2


def delta(site):
    return torch.randn(site.size, generator=torch.Generator().manual_seed(1))


def fold(site, seed=0):
    return Fold(site, scale(site, seed))


def error(before, after, dtype=torch.float64):
    (one,), (two,) = (run_in(program, dtype, tiny.ids()) for program in (before, after))
    return relative_error(one, two)


FOLDS = {
    "qkv": ("rms", written.qkv()), "mlp_in": ("rms", written.mlp_in(1)), "v_to_o": ("rms", written.v_to_o()),
    "q_with_k": ("rms", written.q_with_k()), "up_to_down": ("rms", written.up_to_down()),
    "gate_with_up": ("rms", written.gate_with_up()), "one_plus_w": ("offset", written.qkv(0, "offset")),
    "gelu_gate": ("offset", written.gate_with_up()), "layer_norm": ("layer", written.qkv(1, "layer")),
    "layer_v_to_o": ("layer", written.v_to_o(0, "layer")), "relu": ("layer", written.fc1_to_fc2()),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_is_exact(name):
    style, site = FOLDS[name]
    before = tiny.raised(style)
    text = show(before)
    after = check(apply(before, [fold(site)], by="smoothquant"))
    assert error(before, after) < 1e-12
    assert relative_error(before.run(tiny.ids())[0], after.run(tiny.ids())[0]) < 1e-5
    assert show(before) == text and show(after) != text and "smoothquant: " in show(after)


@pytest.mark.parametrize("style", ["rms", "layer"])
def test_all_sites_at_once_and_one_after_another(style):
    sites = [written.qkv(0, style), written.mlp_in(0, style), written.v_to_o(0, style)]
    sites += [written.q_with_k(), written.up_to_down(), written.gate_with_up()] if style == "rms" else []
    before, edits = tiny.raised(style), [fold(site, seed) for seed, site in enumerate(sites)]
    together, apart = apply(before, edits), before
    for edit in edits:
        apart = apply(apart, [edit])
    assert error(before, together) < 1e-12 and error(before, apart) < 1e-12
    for name in together.used_params():  # rounded once, however they came
        assert torch.equal(together.tensor(name), apart.tensor(name)), name


def test_the_graph_shows_what_was_done():
    after = apply(tiny.raised("rms"), [fold(written.qkv())], by="smoothquant")
    text = show(after, fingerprints=False)
    assert "param layers.0.norm1.weight : f32[16] <- smoothquant: / s\n" in text
    assert "param layers.0.attn.q_proj.weight : f32[16, 16] <- smoothquant: * s\n" in text
    assert after.log[-1].where.startswith("layers.0.norm1 ->") and after.log[-1].by == "smoothquant"


def test_nothing_is_computed_before_it_is_asked_for():
    before = tiny.raised("rms")
    after = apply(before, [fold(written.qkv())])
    name = "layers.0.attn.q_proj.weight"
    assert isinstance(after.params[name], Derived) and after.params[f"{name}@1"] is before.params[name]
    twice = apply(after, [fold(written.qkv(), 1)])
    assert twice.params[name].sources == (f"{name}@1",) and f"{name}@2" not in twice.params
    assert torch.equal(materialise(twice)[name], twice.tensor(name))


def test_all_ones_change_no_bit():
    sites = [written.qkv(0, "offset"), written.v_to_o(), written.gate_with_up()]
    before = tiny.raised("offset")
    after = apply(before, [Fold(site, torch.ones(site.size)) for site in sites])
    assert torch.equal(before.run(tiny.ids())[0], after.run(tiny.ids())[0])
    assert "smooth" not in show(after)


def test_where_limits_the_part():
    site = written.v_to_o()
    (producer, consumer) = site.axes
    rows = torch.tensor([2, 5])
    # the same factors, once over the whole size and once over the chosen rows only
    part = replace(producer, where=((0, rows),))
    short = replace(part, powers=written.powers(rows, -1.0))
    for axis in (part, short):
        after = apply(tiny.raised("rms"), [fold(replace(site, axes=(axis, consumer)))])
        want = tiny.raised("rms").tensor(producer.param).clone()
        want[rows] /= scale(site)[rows][:, None]
        torch.testing.assert_close(after.tensor(producer.param), want)


def test_slices_of_a_large_weight_agree(monkeypatch):
    site = written.qkv(0, "layer")
    edits = [Shift(site, delta(site)), fold(site), fold(written.v_to_o(0, "layer"))]
    whole = materialise(apply(tiny.raised("layer"), edits))
    monkeypatch.setattr("qpass.sites.edited._SLICE", 40)
    sliced = materialise(apply(tiny.raised("layer"), edits))
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


@pytest.mark.parametrize("site", [written.qkv(0, "layer"), written.mlp_in(1, "layer"), written.v_to_o(0, "layer")])
def test_a_shift_is_exact(site):
    before = tiny.raised("layer")
    shifted = check(apply(before, [Shift(site, delta(site))]))
    assert error(before, shifted) < 1e-12
    both = apply(before, [Shift(site, delta(site)), fold(site)])
    assert error(before, both) < 1e-12
    assert torch.equal(both.tensor(site.columns[0].param), apply(shifted, [fold(site)]).tensor(site.columns[0].param))


def test_shifts_and_folds_of_neighbours_compose():
    """v_proj is a consumer of the norm and a producer for o_proj; whatever the order, each sees what was before."""
    one, two = written.qkv(0, "layer"), written.v_to_o(0, "layer")
    edits = [Shift(one, delta(one)), fold(one), Shift(two, delta(two)), fold(two)]
    before = tiny.raised("layer")
    for order in (edits, [edits[2], edits[0], edits[3], edits[1]], edits + edits):
        apart = before
        for edit in order:
            apart = apply(apart, [edit])
        assert error(before, apply(before, order)) < 1e-12 and error(before, apart) < 1e-12


def test_the_activation_really_moves():
    site = written.qkv(0, "layer")
    before = tiny.raised("layer")
    after = apply(before, [Shift(site, delta(site)), fold(site)])
    norm = {}
    for key, program in (("before", before), ("after", after)):
        node = program.value("layers.0.norm1")
        args = [program.tensor(arg.target) if getattr(arg, "op", "") == "get_attr" else arg for arg in node.args]
        torch.manual_seed(3)
        norm[key] = node.target(torch.randn(2, 5, 16), *args[1:])
    torch.testing.assert_close(norm["after"], (norm["before"] - delta(site)) / scale(site), rtol=1e-4, atol=1e-4)


def test_biases_are_added_only_when_allowed():
    site = written.qkv()
    before = tiny.raised("rms")
    with pytest.raises(UnsupportedError) as refusal:
        apply(before, [Shift(site, delta(site))])
    assert "a shift needs a bias on layers.0.norm1, layers.0.attn.q_proj" in str(refusal.value)
    assert "allow biases to be added (add_bias=True)" in str(refusal.value)
    after = check(apply(before, [Shift(site, delta(site)), fold(site)], add_bias=True))
    assert error(before, after) < 1e-12
    text = show(after, fingerprints=False)
    assert "%layers.0.norm1.shifted = add(%layers.0.norm1, layers.0.norm1.bias)" in text
    assert "param layers.0.attn.q_proj.bias : f32[16]" in text
    again = apply(after, [Shift(site, delta(site)), fold(site, 2)])  # now they are there
    assert error(before, again) < 1e-12
    assert torch.equal(before.run(tiny.ids())[0], tiny.raised("rms").run(tiny.ids())[0])


def test_v_to_o_with_added_biases():
    site, before = written.v_to_o(), tiny.raised("rms")
    assert error(before, apply(before, [Shift(site, delta(site)), fold(site)], add_bias=True)) < 1e-12


def test_a_shift_refuses_what_it_cannot_do():
    site = written.up_to_down()
    with pytest.raises(UnsupportedError, match="cannot be shifted: a product lies between"):
        apply(tiny.raised("rms"), [Shift(site, delta(site))])


def test_a_shared_bias_is_named():
    before = tiny.raised("layer")
    site = written.qkv(0, "layer")
    graph, _ = copy_graph(before.graph)
    q, k = (next(n for n in graph.nodes if n.meta["name"] == f"layers.0.attn.{x}_proj") for x in "qk")
    k.args = (*k.args[:2], q.args[2])
    with pytest.raises(UnsupportedError, match=r"the bias 'layers.0.attn.q_proj.bias' is shared by"):
        apply(before.with_graph(graph), [Shift(site, delta(site))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 15, "a scale of [15], the site has 16 degrees of freedom"),
        ([1.0] * 15 + [0.0], "1 entries of a scale are not positive and finite, the first is 0.0 at 15"),
        ([-1.0] + [1.0] * 15, "the first is -1.0 at 0"),
        ([1.0, float("inf")] * 8, "8 entries of a scale are not positive and finite, the first is inf at 1"),
        ([float("nan")] * 16, "the first is nan at 0"),
    ],
)
def test_bad_scales(values, message):
    with pytest.raises(InputError) as refusal:
        apply(tiny.raised("rms"), [Fold(written.qkv(), torch.tensor(values))])
    assert message in str(refusal.value)


def test_bad_shifts():
    site = written.qkv(0, "layer")
    with pytest.raises(InputError, match="16 entries of a shift are not finite"):
        apply(tiny.raised("layer"), [Shift(site, torch.full((16,), float("nan")))])


def test_a_broken_weight_is_named():
    before = tiny.raised("rms")
    name = "layers.0.attn.q_proj.weight"
    broken = before.tensor(name).clone()
    broken[2, 3] = float("nan")
    before = replace(before, params={**before.params, name: broken})
    with pytest.raises(NumericsError) as refusal:
        apply(before, [fold(written.qkv())])
    assert f"1 NaN or Inf values, the first at (2, 3) (at {name})" in str(refusal.value)


def test_a_factor_out_of_range_is_an_error():
    after = apply(tiny.raised("rms", dtype=torch.bfloat16), [Fold(written.qkv(), torch.full((16,), 1e-39))])
    with pytest.raises(NumericsError, match=r"leaves the range of torch.bfloat16 \(at layers.0.norm1.weight\)"):
        materialise(after)


def test_unknown_names():
    site = written.qkv()
    wrong = replace(site, axes=(replace(site.axes[0], param="nowhere"),))
    with pytest.raises(InputError, match=r"a parameter that the program does not have \(at nowhere\)"):
        apply(tiny.raised("rms"), [fold(wrong)])


def test_smooth_is_a_parameter_that_multiplies_up():
    site, before = written.gate_with_up(), tiny.raised("rms")
    once = apply(before, [fold(site)])
    name = "layers.0.mlp/mul.smooth"
    torch.testing.assert_close(once.tensor(name), 1 / scale(site))
    assert f"'silu', {name})" in show(once)
    twice = apply(once, [fold(site, 5)])
    torch.testing.assert_close(twice.tensor(name), 1 / scale(site) / scale(site, 5))
    assert error(before, twice) < 1e-12 and f"{name}_2" not in twice.params


def test_relu_is_not_smoothed():
    site = written.fc1_to_fc2()
    site = replace(site, smooths=(Smooth("layers.0.mlp/relu", written.powers(torch.arange(24), -1.0)),))
    with pytest.raises(UnsupportedError, match=r"the activation 'relu' cannot be smoothed \(at %layers.0.mlp/relu\)"):
        apply(tiny.raised("layer"), [fold(site)])


def test_half_precision_is_rounded_once():
    before = tiny.raised("rms", dtype=torch.bfloat16)
    edits = [fold(written.qkv(), 1), fold(written.q_with_k(), 2), fold(written.v_to_o(), 3)]
    after = apply(before, edits)
    assert error(before, after) < 1e-12  # unrounded, it is exact
    name = "layers.0.attn.v_proj.weight"
    assert after.tensor(name).dtype is torch.bfloat16
    columns, rows = scale(written.qkv(), 1).double(), scale(written.v_to_o(), 3).double()
    want = before.tensor(name).double() * columns / rows[:, None]
    assert torch.equal(after.tensor(name), want.to(torch.bfloat16))
    got, base = after.run(tiny.ids())[0], before.run(tiny.ids())[0]
    assert got.dtype is torch.bfloat16 and relative_error(base.double(), got.double()) < 0.03


def test_a_method_after_an_added_bias_scales_it_too():
    """The second of two methods sees the bias that the first one added as a parameter like any other."""
    from tests.sites.models import program as named

    before = named("llama")
    site = next(site for site in analyse(before).sites if "v_proj -> " in site.name)
    after = apply(before, [Shift(site, torch.full((site.size,), 0.1, dtype=torch.float64))], add_bias=True)
    again = next(site for site in analyse(after).sites if "v_proj -> " in site.name)
    assert again.size == site.size and not again.missing_bias
    assert "model.layers.0.self_attn.v_proj.bias" in {axis.param for axis in again.axes}
