"""Methods that choose scales: what they set reaches the codes, what they skip and count is said, and in what order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import qpass
from qpass.errors import InputError, NumericsError, RecipeError
from qpass.formats import Format
from qpass.graph.program import materialise
from qpass.lowering.reference import target
from qpass.methods import METHODS, Method, Solution, as_data, make
from qpass.methods.planned import mean_squares, planned_weights
from qpass.numerics import codec, scale_search, scales, shift_cast, shift_search
from qpass.numerics.scales import Scales
from qpass.observe.squares import Squares
from qpass.passes.calibrate import calibrate, method_lines
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.sites import Analysis
from qpass.stages import check
from tests import tiny

DOWN = "layers.0.mlp.down_proj.weight"
INPUT = "layers.0.mlp/mul"


@pytest.fixture(autouse=True)
def without_sites(monkeypatch):
    """Scales are chosen weight by weight; the analysis takes no part."""
    monkeypatch.setattr("qpass.passes.calibrate.analyse", lambda program: Analysis(()))


def planned(recipe):
    return plan_program(tiny.raised("rms"), Recipe.parse(recipe), target)


def solved(recipe, data=None):
    return check(calibrate(planned(recipe), Recipe.parse(recipe), data))


def found_in(program, name=DOWN):
    parts = {part: program.params.get(f"{name}.{part}") for part in ("scale", "zero", "outer")}
    return Scales(**parts)


def with_methods(scheme, *methods):
    return {"methods": list(methods), "linears": {"*": scheme}}


@pytest.mark.parametrize(("kind", "options"), [
    ("m1", {}), ("m2", {}), ("m2plus", {}), ("m1", {"round": "down"}), ("m2", {"round": "best2"}),
    ("m1", {"base_search": True}), ("m2plus", {"base_search": True}),
])  # fmt: skip
def test_scales_are_set_before_codes_and_reach_them(kind, options):
    recipe = with_methods(f"e2m1:g8:sym:{kind} x e4m3:token:sym", {"power-of-two-scales": options})
    program = solved(recipe)
    assert not any(name.endswith(".codes") for name in program.params)
    fmt, weight = Format.parse(f"e2m1:g8:sym:{kind}"), program.tensor(DOWN)
    search = kind == "m2plus" or (kind == "m2" and options.get("base_search", False))
    want = shift_search.choose(weight, fmt, options.get("round", "up"), base_search=search, limit=True)
    for one, other in zip(found_in(program), want):
        assert (one is None and other is None) or torch.equal(one, other)
    quantised = check(quantise(program))
    assert torch.equal(materialise(quantised)[f"{DOWN}.codes"], codec.quantize(weight, want, fmt))
    fused = check(fuse(quantised))
    (got,) = quantised.run(tiny.ids())
    assert torch.equal(fused.run(tiny.ids())[0], got) and torch.equal(check(lower(fused)).run(tiny.ids())[0], got)


def test_by_default_m2_is_that_of_round_to_nearest():
    ids = tiny.ids()
    results = [check(quantise(solved(with_methods("e2m1:g8:sym:m2", *methods)))).run(ids)[0]
               for methods in ((), ("power-of-two-scales",))]  # fmt: skip
    assert torch.equal(*results)


def test_other_kinds_are_skipped_and_said():
    recipe = {"methods": "power-of-two-scales", "linears": {"*o_proj": "int4:g8:asym", "*": "e2m1:g8:sym:m2"}}
    program = solved(recipe)
    assert f"{DOWN}.scale" in program.params and "layers.0.attn.o_proj.weight.scale" not in program.params
    lines = method_lines(program, Recipe.parse(recipe))
    skipped = "layers.1.attn.o_proj.weight: skipped: its scales are of the kind bf16"
    assert f"power-of-two-scales: {skipped}" in lines
    assert "2 skipped, 26 parameters set" in lines[0]
    total = next(line for line in lines if "in all" in line)
    assert "13 weights: in all squared error 1." in total and "of that of real scales; 0 of 480 groups below" in total
    own = next(change for change in program.log if change.where == DOWN)
    assert own.by == "power-of-two-scales" and own.what.endswith("0 of 48 groups below 2^-14 of their row's largest")


def test_a_recipe_without_such_a_format_is_an_error():
    with pytest.raises(RecipeError) as error:
        solved("power-of-two-scales+w8a8-int8")
    assert str(error.value) == (
        "no weight has scales of the kind m1, m2 or m2plus (at method power-of-two-scales). "
        "Fix: use a scheme such as w4a8-fp-m2, or remove the method."
    )


def small_groups(model):
    """Three groups of one weight far below their rows."""
    with torch.no_grad():
        weight = model.layers[0].mlp.down_proj.weight
        weight[3, 8:16] *= 2.0**-20
        weight[5, :16] *= 2.0**-20
    return model


@pytest.mark.parametrize("kind", ["m1", "m2"])
def test_groups_beyond_the_limit_are_counted_and_rounded_there(kind):
    model, ids = small_groups(tiny.Decoder("rms")).eval(), tiny.ids()
    recipe = f"power-of-two-scales+e2m1:g8:sym:{kind} x e4m3:token:sym"
    trace = qpass.trace(model, recipe, (ids,), target="reference")
    log = {change.where: change.what for change in trace["SOLVED"].log if change.by == "power-of-two-scales"}
    assert "; 3 of 48 groups below 2^-14 of their row's largest, rounded at that limit" in log[DOWN]
    assert "; 3 of 544 groups below" in log["15 weights"] and log["15 weights"] in str(trace.plan)
    scale = trace["SOLVED"].tensor(f"{DOWN}.scale").int()
    shifts = scale if kind == "m2" else scale.amax(1, keepdim=True) - scale
    assert int(shifts.max()) == 14 and shifts[3, 1] == shifts[5, 0] == shifts[5, 1] == 14


def test_round_to_nearest_counts_them_too():
    trace = qpass.trace(small_groups(tiny.Decoder("rms")).eval(), "e2m1:g8:sym:m2", (tiny.ids(),), target="reference")
    (change,) = [change for change in trace["QUANTISED"].log if change.by == "quantise"]
    assert change.where == DOWN
    assert change.what == "3 of 48 groups below 2^-14 of their row's largest, rounded at that limit"
    assert change in trace["LOWERED"].log


@pytest.mark.parametrize("scheme", ["int4:g8:asym", "e2m1:g8:sym:f16", "nvfp4", "mxfp4a16", "int8:channel:sym",
                                    "e4m3:b8x8:sym", "e2m1:g8:sym:m2"])  # fmt: skip
def test_scale_search_reaches_the_codes(scheme):
    text = scheme.replace("nvfp4", "e2m1:g8:sym:e4m3").replace("mxfp4a16", "e2m1:g8:sym:e8m0")
    program = solved(with_methods(text, "scale-search"))
    fmt, weight = Format.parse(text), program.tensor(DOWN)
    want = scale_search.search(weight, fmt)
    for one, other in zip(found_in(program), want):
        assert (one is None and other is None) or torch.equal(one.float(), other.float())
    quantised = check(quantise(program))
    codes = materialise(quantised)[f"{DOWN}.codes"]
    assert torch.equal(codes.float(), codec.quantize(weight, want, fmt).float())
    lowered = check(lower(check(fuse(quantised))))
    assert torch.equal(lowered.run(tiny.ids())[0], quantised.run(tiny.ids())[0])
    total = next(change.what for change in program.log if change.where == "15 weights")
    assert total.startswith("in all error 0.") or fmt.bits == 8


def test_weights_are_by_the_mean_square_of_their_inputs():
    """One input that is large draws the scale: the error on it, and of the output, is smaller."""
    program = planned("int3:g8:sym:f32")
    batches = [(tiny.ids(),), (tiny.ids(3, 4),)]
    weights = {weight.name: weight for weight in planned_weights(program)}
    assert weights[DOWN].inputs == (INPUT,) and weights[DOWN].format == Format.parse("int3:g8:sym:f32")
    got = mean_squares(program, lambda: batches, weights.values())
    values = torch.cat([inputs_of_down(ids) for (ids,) in batches])
    torch.testing.assert_close(got[DOWN], values.double().square().mean(0).float())

    def loss(options):
        done = solved(with_methods("int3:g8:sym:f32", {"scale-search": options}), batches)
        fmt, weight = Format.parse("int3:g8:sym:f32"), program.tensor(DOWN)
        error = codec.fake_quantize(weight, fmt, found_in(done)).double() - weight.double()
        return float((error**2 * got[DOWN].double()).sum())

    assert loss({"weighted": True}) < loss({})


def inputs_of_down(ids):
    model, seen = tiny.Decoder("rms").eval(), []
    model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
    return seen[0].flatten(0, -2)


@pytest.mark.parametrize("method", ["power-of-two-scales", "scale-search"])
def test_only_weighted_needs_data(method):
    assert not make(method).needs_data and make(method, {"weighted": True}).needs_data
    assert isinstance(make(method), Method)
    assert as_data(make(method, {"weighted": True})) == {method: {"weighted": True}}
    with pytest.raises(InputError, match=f"the method {method} looks at data, and there is none"):
        solved(with_methods("e2m1:g8:sym:m2", {method: {"weighted": True}}))
    data = [(tiny.ids(),)]
    searched = {"weighted": True, "base_search": True} if method == "power-of-two-scales" else {"weighted": True}
    weighted = solved(with_methods("e2m1:g8:sym:m2", {method: searched}), data)
    plain = solved(with_methods("e2m1:g8:sym:m2", {method: {**searched, "weighted": False}}))
    assert not torch.equal(found_in(weighted).outer, found_in(plain).outer)


@pytest.mark.parametrize("kind", ["m1", "m2", "m2plus"])
@pytest.mark.parametrize("branch", ["", ":r2"])
def test_codes_of_gptq_keep_the_scales_and_cast_exactly(kind, branch):
    """Scales first, then codes, then a branch; what comes out becomes FP8 by a shift."""
    methods = ("power-of-two-scales", "gptq", *(("lorc",) if branch else ()))
    program = solved(with_methods(f"e2m1:g8:sym:{kind}{branch} x e4m3:token:sym", *methods), [(tiny.ids(3, 7),)])
    fmt, codes, found = Format.parse(f"e2m1:g8:sym:{kind}"), program.tensor(f"{DOWN}.codes"), found_in(program)
    search = {"base_search": True} if kind == "m2plus" else {}
    want = shift_search.choose(program.tensor(DOWN), fmt, limit=True, **search)
    assert torch.equal(found.scale, want.scale)
    assert not torch.equal(codes, codec.quantize(program.tensor(DOWN), found, fmt)), "not round to nearest"
    cast = shift_cast.cast_weight(codes, found, fmt)
    values = codec.dequantize(codes, found, fmt, torch.float32)
    assert torch.equal((cast.bytes.double() * cast.factor.double()).float(), values)


@dataclass(frozen=True)
class Codes:
    """Chooses the codes of one weight, as round to nearest would."""

    name: ClassVar[str] = "codes"
    needs_data: ClassVar[bool] = False

    def solve(self, program, analysis, data):
        fmt, weight = Format.parse("e2m1:g8:sym:m2"), program.tensor(DOWN)
        found = found_in(program) if f"{DOWN}.scale" in program.params else codec.choose(weight, fmt)
        codes = codec.quantize(weight, found, fmt)
        return Solution(params={f"{DOWN}.codes": codes, f"{DOWN}.scale": found.scale, f"{DOWN}.outer": found.outer})


@pytest.mark.parametrize("method", ["power-of-two-scales", "scale-search"])
def test_g34_a_scale_that_changes_behind_its_codes_is_refused(method, monkeypatch):
    monkeypatch.setitem(METHODS, "codes", Codes)
    with pytest.raises(RecipeError) as error:
        solved(with_methods("e2m1:g8:sym:m2", "codes", method))
    assert str(error.value) == (
        f"it sets the scale of {DOWN}, whose codes are chosen already (at method {method}). "
        "Fix: put it before the one that chooses the codes."
    )
    program = solved(with_methods("e2m1:g8:sym:m2", method, "codes"))  # the other way round they are used
    assert torch.equal(check(quantise(program)).run(tiny.ids())[0],
                       check(quantise(solved(with_methods("e2m1:g8:sym:m2", method)))).run(tiny.ids())[0])  # fmt: skip


def test_g34_what_such_a_scale_would_do():
    """Codes of real scales under scales rounded up to powers of two: each group grows by the ratio, 1 to 2."""
    torch.manual_seed(0)
    w, real, m1 = torch.randn(8, 64), Format.parse("e2m1:g8:sym:f32"), Format.parse("e2m1:g8:sym:m1")
    before, after = codec.choose(w, real), codec.choose(w, m1)
    codes = codec.quantize(w, before, real)
    ratio = scales.effective(after, m1) / before.scale
    grown = codec.dequantize(codes, after, m1, torch.float32)
    kept = codec.dequantize(codes, before, real, torch.float32)
    torch.testing.assert_close(grown, kept * ratio.repeat_interleave(8, 1))
    assert (ratio >= 1).all() and ratio.mean() > 1.2


def test_bad_weights_are_named():
    model = tiny.Decoder("rms").eval()
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[1, 2] = float("inf")
    for method in ("power-of-two-scales", "scale-search"):
        with pytest.raises(NumericsError, match=rf"1 NaN or Inf values, the first at \(1, 2\) \(at {DOWN}\)"):
            qpass.compile(model, f"{method}+e2m1:g8:sym:m2", (tiny.ids(),), target="reference")
    small = tiny.Decoder("rms").eval()
    with torch.no_grad():
        small.layers[0].mlp.down_proj.weight[2, 8:16] *= 1e-9
    with pytest.raises(NumericsError) as error:
        qpass.compile(small, "scale-search+e2m1:g8:sym:f16", (tiny.ids(),), target="reference")
    assert "1 scales are too small for f16, the first at (2, 1) of [row, group] (at " + DOWN in str(error.value)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("power-of-two-scales", {"round": "upp"}, "unknown rounding 'upp' (at power-of-two-scales). Fix: use 'up'."),
        ("power-of-two-scales", {"base_search": 1}, "base_search is 1"),
        ("power-of-two-scales", {"weighted": "yes"}, "weighted is 'yes' (at power-of-two-scales). Fix: use true or"),
        ("power-of-two-scales", {"rounding": "up"}, "unknown option 'rounding'"),
        ("scale-search", {"power": 0}, "power is 0 (at scale-search). Fix: use a number above 0, at most 16."),
        ("scale-search", {"power": True}, "power is True"),
        ("scale-search", {"weighted": 2}, "weighted is 2"),
        ("scale-search", {"e4m3": "every"}, "e4m3 is 'every' (at scale-search). Fix: use"),
    ],
)
def test_mistakes(method, options, message):
    with pytest.raises(RecipeError) as error:
        make(method, options)
    assert message in str(error.value)


def test_squares():
    x, seen = torch.randn(5, 3, 7).to(torch.bfloat16), Squares()
    for part in x.split(2):
        seen.update(part)
    torch.testing.assert_close(seen.total / seen.count, x.double().square().flatten(0, 1).mean(0))
    assert seen.count == 15
    seen.update(x[:0])
    with pytest.raises(InputError, match="6 channels, there were 7 before"):
        seen.update(torch.ones(2, 6))
    with pytest.raises(NumericsError, match="NaN or Inf in 1 channels, the first is 3"):
        Squares().update(torch.tensor([[0, 0, 0, float("nan")]]))
