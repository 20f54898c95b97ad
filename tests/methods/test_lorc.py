"""LoRC end to end: what it fits, what it keeps and drops, and that the branch is there, counted and computed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qpass
from qpass import pipeline
from qpass.errors import InputError, NumericsError, RecipeError
from qpass.formats import SCHEMES, Format, Scheme
from qpass.graph.program import materialise
from qpass.graph.values import op_name
from qpass.listing import listing
from qpass.lowering.reference import target
from qpass.methods import METHODS, Method, Solution, lorc, make, options
from qpass.methods.lorc import auto_rank
from qpass.numerics import codec, low_rank
from qpass.passes.calibrate import calibrate
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program, summarise
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.stages import check
from tests import tiny
from tests.passes.test_every_scheme import small

IDS = tiny.ids(3, 7)
NAME = "layers.0.mlp.up_proj.weight"


def recipe(scheme, *methods, **given):
    return Recipe.parse({"methods": [*methods, {"lorc": {"rank": 2, **given}}], "linears": {"*": scheme}})


def solved(asked, program=None, data=((IDS,),)):
    program = tiny.raised("rms") if program is None else program
    planned = plan_program(program, asked, target)
    return check(calibrate(planned, asked, data))


def stages(asked, program=None):
    quantised = check(quantise(solved(asked, program)))
    fused = check(fuse(quantised))
    return quantised, fused, check(lower(fused))


def planned_bytes(program, asked):
    return summarise(program, asked, target).bytes_after


# -------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": -1}, "rank is -1"), ({"rank": 2.5}, "rank is 2.5"), ({"rank": True}, "rank is True"),
        ({"rank": "most"}, "use a whole number, or 'auto'"), ({"factor": "int9"}, "use 'int8'"),
        ({"weighted": "yes"}, "weighted is 'yes'"), ({"merge": 1}, "merge is 1"), ({"damping": 0}, "damping is 0"),
        ({"ranks": 4}, "unknown option 'ranks' (at method lorc). Fix: use 'rank'"),
    ],
)  # fmt: skip
def test_mistakes(given, message):
    with pytest.raises(RecipeError) as error:
        make("lorc", given)
    assert message in str(error.value)


def test_the_method_is_one():
    assert isinstance(make("lorc"), Method) and make("lorc").needs_data
    plain = make("lorc", {"weighted": False, "rank": 4})
    assert not plain.needs_data and options(plain) == {"weighted": False, "rank": 4}
    assert "lorc*" in listing()


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((15, 400), 0), ((16, 16), 1), ((128, 256), 8), ((1024, 1024), 8), ((2048, 8192), 16), ((5120, 5120), 40)],
)
def test_auto_rank(shape, rank):
    assert auto_rank(shape) == rank


def test_a_rank_in_the_format_wins():
    asked = Recipe.parse({"methods": ["lorc"], "linears": {"head": "int4:g16:asym:r3-f16", "*": "int4:g16:asym"}})
    formats = {choice.weight: choice.scheme.weight for _, choice in
               summarise(plan_program(tiny.raised("rms"), asked, target), asked, target).choices}  # fmt: skip
    assert (formats["head.weight"].rank, formats["head.weight"].factor) == (3, "f16")
    assert (formats[NAME].rank, formats[NAME].factor) == (1, "int8")
    assert formats["layers.0.attn.k_proj.weight"].rank == 0  # 8 x 16: a branch would cost what it gives


def test_a_rank_that_no_matrix_has_is_refused_by_name():
    with pytest.raises(RecipeError) as error:
        solved(recipe("int4:g16:asym", rank=9))
    assert "a branch of rank 9 for a weight of 8 x 16 (at layers.0.attn.k_proj.weight)" in str(error.value)


def test_rank_0_is_no_branch():
    after = solved(recipe("int4:g16:asym", rank=0))
    assert not any(name.endswith(low_rank.UP) for name in after.params)
    assert after.log[-1].what == "no branch" and after.log[-2].what.startswith("skipped: the plan gives no linear")


def test_the_plain_form_needs_no_data():
    asked = recipe("int2:g10:asym", weighted=False)
    assert any(name.endswith(low_rank.UP) for name in solved(asked, data=None).params)
    with pytest.raises(InputError, match="the method lorc looks at data, and there is none"):
        solved(recipe("int2:g10:asym"), data=None)
    with pytest.raises(InputError, match="there is no calibration batch"):
        solved(recipe("int2:g10:asym"), data=[])


# -------------------------------------------------------------------------------------------- through every stage


@pytest.mark.parametrize(("name", "style"), zip(sorted(SCHEMES), itertools.cycle(("rms", "layer"))))
def test_every_scheme_through_every_stage(name, style):
    asked = recipe(small(SCHEMES[name]), rank=1 if name == "w4a8-fp" else 2, factor="f16" if "mx" in name else "int8")
    quantised, fused, lowered = stages(asked, tiny.raised(style))
    (got,) = quantised.run(IDS)
    assert torch.isfinite(got).all()
    assert torch.equal(fused.run(IDS)[0], got) and torch.equal(lowered.run(IDS)[0], got)


def test_half_precision():
    quantised, fused, lowered = stages(recipe("int3:g10:asym"), tiny.raised("rms", dtype=torch.bfloat16))
    (got,) = quantised.run(IDS)
    assert got.dtype is torch.bfloat16 and quantised.params[f"{NAME}.{low_rank.UP}"].dtype is torch.bfloat16
    assert torch.equal(fused.run(IDS)[0], got) and torch.equal(lowered.run(IDS)[0], got)


@pytest.mark.parametrize("style", ["rms", "offset", "layer"])
@pytest.mark.parametrize("weighted", [True, False])
def test_it_helps(style, weighted):
    program = tiny.raised(style)
    (want,) = program.run(IDS)
    plain = Recipe.parse({"linears": {"*": "int2:g10:asym"}})

    def error(asked):
        return float((stages(asked, program)[0].run(IDS)[0] - want).norm())

    assert error(recipe("int2:g10:asym", weighted=weighted, rank=4)) < 0.9 * error(plain)


@pytest.mark.parametrize("text", ["w4a8-fp+lorc", "lorc+mxfp4", "lorc+w4a16-g128"])
def test_by_name(text):
    """Of 320 inputs, the last of two groups of 256 is short; on both targets, the branch in its own kernels."""
    model = nn.Sequential(nn.Linear(320, 256), nn.ReLU(), nn.Linear(256, 128)).eval()
    x = torch.randn(40, 320)
    outputs = {}
    for name in ("reference", "cpu"):
        trace = qpass.trace(model, text, (x,), target=name, calibration=[x])
        assert trace.plan.methods[0].startswith("lorc: 2 of 2 branches kept; mean relative output error 0.")
        (got,) = trace["QUANTISED"].run(x)
        assert torch.equal(trace["FUSED"].run(x)[0], got)
        if name == "reference":
            assert torch.equal(trace["LOWERED"].run(x)[0], got)
        outputs[name] = trace["LOWERED"].run(x)[0]
    torch.testing.assert_close(outputs["cpu"], outputs["reference"], rtol=2e-2, atol=2e-2)


def test_cpu_kernels_run_the_branch():
    model = nn.Sequential(nn.Linear(256, 128)).eval()
    x = torch.randn(9, 256)
    trace = qpass.trace(model, recipe("w8a8-int8", rank=8), (x,), calibration=[x])
    branch = trace.plan.choices[0][1].branch
    if branch[0].kernel.name.startswith("cpu."):
        assert [part.kernel.name for part in branch] == ["cpu.int8_linear", "cpu.int8_weight_linear"]
        kinds = [op_name(node.target) for node in trace["LOWERED"].nodes()]
        assert kinds.count("qpass_cpu.int8_linear") == 2 and kinds.count("qpass_cpu.int8_weight_linear") == 1
    compiled = pipeline.build(model, trace, target="cpu")
    torch.testing.assert_close(compiled(x), trace["QUANTISED"].run(x)[0], rtol=1e-2, atol=1e-2)


def test_as_a_backend():
    model = nn.Sequential(nn.Linear(64, 32)).eval()
    asked = {"methods": [{"lorc": {"weighted": False, "rank": 4}}], "linears": {"*": "int3:g32:asym"}}
    fast = torch.compile(model, backend="qpass", options={"recipe": asked, "target": "reference"})
    x = torch.randn(5, 64)
    want = qpass.compile(model, asked, (x,), target="reference")(x)
    torch.testing.assert_close(fast(x), want)


# -------------------------------------------------------------------------------------------------- what it fits


def moment_of(*inputs):
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    return 2 / len(rows) * rows.T @ rows


def product(program, name):
    return program.tensor(f"{name}.{low_rank.UP}") @ program.tensor(f"{name}.{low_rank.DOWN}")


def expected(weight, fmt, moment, rank):
    error = weight - codec.fake_quantize(weight, Format.parse(fmt))
    up, down = low_rank.factors(error, rank, low_rank.metric(moment, 0.01).lower)
    return up @ down


class Twice(nn.Module):
    """One weight behind two inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 24))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight)), self.weight)


def test_a_weight_that_two_linears_share_sees_both_inputs():
    module, x, more = Twice().eval(), torch.randn(50, 24), torch.randn(30, 24)
    asked = recipe("int2:g8:asym", rank=3)
    trace = qpass.trace(module, asked, (x,), target="reference", calibration=[x, more])
    hidden = [torch.relu(F.linear(batch, module.weight)) for batch in (x, more)]
    want = expected(module.weight, "int2:g8:asym", moment_of(x, more, *hidden), 3)
    torch.testing.assert_close(product(trace["SOLVED"], "weight"), want, rtol=1e-3, atol=1e-4)
    (got,) = trace["QUANTISED"].run(x)
    assert torch.equal(trace["LOWERED"].run(x)[0], got)
    names = trace["LOWERED"].used_params()
    assert sum(name.endswith(f"{low_rank.UP}.codes") for name in names) == 1
    floats = qpass.trace(module, recipe("int2:g8:asym", factor="f16"), (x,), target="reference", calibration=[x])
    assert torch.equal(floats["LOWERED"].run(x)[0], floats["QUANTISED"].run(x)[0])


def test_the_metric_is_that_of_the_inputs():
    x = torch.randn(60, 24) * (1 + 20 * (torch.arange(24) % 8 == 0))
    model = nn.Sequential(nn.Linear(24, 40)).eval()
    found = qpass.trace(model, recipe("int3:g8:asym", rank=3), (x,), target="reference", calibration=[x[:40], x[40:]],
                        until="SOLVED")["SOLVED"]  # fmt: skip
    want = expected(model[0].weight, "int3:g8:asym", moment_of(x), 3)
    torch.testing.assert_close(product(found, "0.weight"), want, rtol=1e-3, atol=1e-4)


def test_linears_that_share_an_input_share_its_moment(monkeypatch):
    counts = []
    real = lorc.gather
    monkeypatch.setattr(lorc, "gather", lambda *args: counts.append(len(args[2])) or real(*args))
    one = solved(recipe("int2:g10:asym"))
    assert counts == [2 * 4 + 1]  # of 15 linears
    monkeypatch.setattr(lorc, "AT_ONCE", 4 * 3 * 16**2)
    two = solved(recipe("int2:g10:asym"), data=iter([(IDS,)]))
    assert sum(counts[1:]) == 9 and max(counts[1:]) <= 3 and len(counts) > 3  # in a few runs
    for name in one.params:
        if low_rank.UP in name:
            assert torch.equal(one.params[name], two.params[name])


def test_inputs_of_zero_give_the_plain_form_and_say_so():
    model = nn.Sequential(nn.Linear(24, 24)).eval()
    zeros = torch.zeros(4, 24)
    asked = recipe("int2:g8:asym")
    found = qpass.trace(model, asked, (zeros,), target="reference", calibration=[zeros], until="SOLVED")
    assert "not weighted: the second moment of its inputs is zero or singular" in found["SOLVED"].log[-2].what
    plain = qpass.trace(model, recipe("int2:g8:asym", weighted=False), (zeros,), target="reference", until="SOLVED")
    torch.testing.assert_close(product(found["SOLVED"], "0.weight"), product(plain["SOLVED"], "0.weight"))


# ------------------------------------------------------------------------------------------ after other methods


def stand_in(monkeypatch, name, part):
    """A method that sets codes, as GPTQ does: each code one too high, or only scales twice as large."""

    @dataclass(frozen=True)
    class Sets:
        name: ClassVar[str] = "sets"
        needs_data: ClassVar[bool] = False

        def solve(self, program, analysis, data):
            fmt = program.value("layers.0.mlp.up_proj").meta["plan"].scheme.weight.plain
            found = codec.choose(program.tensor(name), fmt)
            if part == "scale":
                return Solution(params={f"{name}.scale": 2 * found.scale})
            codes = (codec.quantize(program.tensor(name), found, fmt) + 1).clamp(max=fmt.range[1])
            return Solution(params={f"{name}.codes": codes, f"{name}.scale": found.scale})

    monkeypatch.setitem(METHODS, "sets", Sets)


@pytest.mark.parametrize("part", ["codes", "scale"])
def test_the_error_is_that_of_the_codes_that_are_there(monkeypatch, part):
    stand_in(monkeypatch, NAME, part)
    before = solved(Recipe.parse({"methods": ["sets"], "linears": {"*": "int4:channel:sym"}}))
    tensors = materialise(quantise(before))
    kept = tensors[f"{NAME}.codes"].float() * tensors[f"{NAME}.scale"].float()
    after = solved(recipe("int4:channel:sym", "sets", weighted=False))
    up, down = low_rank.factors(before.tensor(NAME) - kept, 2)
    torch.testing.assert_close(product(after, NAME), up @ down, rtol=1e-4, atol=1e-5)
    quantised, _, lowered = stages(recipe("int4:channel:sym", "sets"))
    assert torch.equal(lowered.run(IDS)[0], quantised.run(IDS)[0])


@pytest.mark.parametrize("weights", ["as they are", "on the grid"])
@pytest.mark.parametrize("part", ["codes", "scale"])
def test_codes_chosen_afterwards_are_refused(monkeypatch, part, weights):
    """Also where the branch was dropped: it was for the codes as they were."""
    stand_in(monkeypatch, NAME, part)
    program = tiny.raised("rms") if weights == "as they are" else on_the_grid()
    methods = [{"lorc": {"rank": 2, "weighted": False}}, "sets"]
    asked = Recipe.parse({"methods": methods, "linears": {"*": "int4:channel:sym"}})
    with pytest.raises(RecipeError) as error:
        solved(asked, program)
    assert f"it sets the {part} of {NAME}, whose error lorc has corrected already (at method sets)" in str(error.value)
    assert "Fix: put sets before lorc" in str(error.value)


def test_smoothing_afterwards_and_two_of_it_are_refused():
    asked = {"linears": {"*": "int4:g10:asym x int8:token:asym"}}
    with pytest.raises(RecipeError, match=r"it changes .*, whose error lorc has corrected already"):
        solved(Recipe.parse({"methods": [{"lorc": {"rank": 2}}, "smoothquant-free"], **asked}))
    with pytest.raises(RecipeError, match=r"whose error lorc has corrected already .* name it once"):
        solved(Recipe.parse({"methods": [{"lorc": {"rank": 2}}, {"lorc": {"rank": 1}}], **asked}))


def test_after_smoothing_the_weight_is_the_smoothed_one():
    asked = recipe("int4:g10:asym x int8:token:asym", "smoothquant", weighted=False)
    after = solved(asked)
    weight = after.tensor("layers.0.attn.q_proj.weight")
    assert not torch.equal(weight, tiny.raised("rms").tensor("layers.0.attn.q_proj.weight"))
    error = weight - codec.fake_quantize(weight, Format.parse("int4:g10:asym"))
    up, down = low_rank.factors(error, 2)
    torch.testing.assert_close(product(after, "layers.0.attn.q_proj.weight"), up @ down, rtol=1e-4, atol=1e-5)


def test_three_methods_in_their_order(monkeypatch):
    """A method that edits nothing leaves a smoothed weight as it is: codes that were chosen for it stay good."""
    stand_in(monkeypatch, NAME, "codes")
    scheme = "int4:channel:sym x int8:token:asym"
    asked = recipe(scheme, "smoothquant", "sets")
    after = solved(asked)
    smoothed = solved(Recipe.parse({"methods": ["smoothquant"], "linears": {"*": scheme}}))
    assert torch.equal(after.tensor(NAME), smoothed.tensor(NAME)) and f"{NAME}.codes" in after.params
    quantised, _, lowered = stages(asked)
    assert torch.equal(lowered.run(IDS)[0], quantised.run(IDS)[0])


# ------------------------------------------------------------------------------------- what is kept, and its bytes


def on_the_grid():
    """A program all of whose projections are values of int4:channel:sym exactly."""
    program = tiny.raised("rms")
    params = dict(program.params)
    for name in params:
        if "proj" in name or "head" in name:
            codes = torch.randint(-7, 8, params[name].shape)
            codes[:, 0] = 7
            params[name] = codes * 0.125
    return replace(program, params=params)


def test_bytes_of_the_plan_are_those_of_the_tensors():
    """Also after a branch was dropped; int8 codes are stored as they are counted."""
    program = tiny.raised("rms")
    exact = torch.randint(-127, 128, (24, 16)).float()
    exact[:, 0] = 127
    program = replace(program, params={**program.params, NAME: exact * 2.0**-10})
    for factor in ("int8", "f16"):
        asked = recipe("w8a16", factor=factor)
        after = solved(asked, program)
        dropped = [change for change in after.log if change.what.startswith("dropped")]
        assert [change.where for change in dropped] == [NAME]
        assert dropped[0].what == "dropped the branch: there is no error to correct"
        tensors = materialise(quantise(after))
        assert planned_bytes(after, asked) == sum(tensor.nbytes for tensor in tensors.values())
        assert f"{NAME}.{low_rank.UP}" not in after.params
        early = planned_bytes(plan_program(program, asked, target), asked)
        each = 2 * (24 + 16) * (4 if factor == "f16" else 1) + (4 * (24 + 2) if factor == "int8" else 0)
        assert early - planned_bytes(after, asked) == each


def test_exact_weights_need_no_branch():
    asked = recipe("int4:channel:sym")
    program = on_the_grid()
    quantised, _, lowered = stages(asked, program)
    assert sum(node.target is torch.ops.aten.linear.default for node in quantised.nodes()) == 15
    assert torch.equal(lowered.run(IDS)[0], quantised.run(IDS)[0])
    plain = Recipe.parse({"linears": {"*": "int4:channel:sym"}})
    assert planned_bytes(solved(asked, program), asked) == planned_bytes(plan_program(program, plain, target), plain)


def test_factors_that_do_not_help_are_dropped(monkeypatch):
    real = lorc.fit
    monkeypatch.setattr(lorc, "fit", lambda *args: real(*args)._replace(after=2 * real(*args).before))
    after = solved(recipe("int4:g10:asym"))
    what = [change.what for change in after.log if change.where == NAME]
    assert what[-1].startswith("dropped the branch: rank 2 does not help with int8 factors: relative output error 0.0")
    assert after.log[-1].what.startswith("0 of 15 branches kept")
    assert not any(low_rank.UP in name for name in quantise(after).params)


def test_the_plan_shows_the_branch():
    model = tiny.Decoder("rms").eval()
    early = str(qpass.plan(model, recipe("w8a8-int8"), (IDS,), target="reference"))
    assert "method {'lorc': {'rank': 2}}" in early
    line = next(line for line in early.splitlines() if line.startswith("layers.0-1.mlp.down_proj  2 "))
    assert line.split() == ["layers.0-1.mlp.down_proj", "2", "int8", "2x24", "16x2", "reference.dequantize",
                            "reference.dequantize", "0.15", "KiB", "3.167"]  # fmt: skip
    assert "int8:channel:sym:r2 x int8:token:asym" in early
    done = str(qpass.plan(model, recipe("w8a8-int8", factor="f16"), (IDS,), target="reference", calibration=[IDS]))
    assert "float linear" in done and "method lorc: 15 of 15 branches kept; mean relative output error" in done
    assert "low-rank branch" not in str(qpass.plan(model, "w8a8-int8", (IDS,), target="reference"))


def test_g38_a_merged_branch_computes_the_same():
    """Up to the rounding of a GEMM: x Ŵᵀ + (x Vᵀ) Uᵀ against x (Ŵ + U V)ᵀ, K + r products of float32 each."""
    model, x = nn.Sequential(nn.Linear(64, 48)).eval(), torch.randn(20, 64)
    for factor in ("int8", "f16"):
        beside = qpass.trace(model, recipe("int3:g32:asym", rank=4, factor=factor), (x,), target="reference",
                             calibration=[x])  # fmt: skip
        merged = qpass.trace(model, recipe("int3:g32:asym", rank=4, factor=factor, merge=True), (x,),
                             target="reference", calibration=[x])  # fmt: skip
        weight = materialise(merged["LOWERED"])["0.weight"]
        size = x.abs() @ weight.abs().T + (x.abs() @ product_size(beside["SOLVED"])) + model[0].bias.abs()
        gap = (beside["LOWERED"].run(x)[0] - merged["LOWERED"].run(x)[0]).abs()
        assert bool((gap <= (64 + 4 + 3) * 2.0**-24 * 2 * size).all())
        assert merged.plan.choices[0][1].reason == "lorc merged its branch into it, to evaluate only"
        assert "merged into float weights, to evaluate only" in merged.plan.methods[0]
        assert merged.plan.bytes_after == merged.plan.bytes_before
        assert merged["SOLVED"].history["0.weight"] == ("lorc: set",)


def product_size(program):
    return (program.tensor(f"0.weight.{low_rank.UP}").abs() @ program.tensor(f"0.weight.{low_rank.DOWN}").abs()).T


def test_merging_what_an_embedding_reads_too_is_refused():
    asked = Recipe.parse({"methods": [{"lorc": {"merge": True, "weighted": False}}], "linears": {"head": "w8a16"}})
    with pytest.raises(RecipeError, match=r"merging would change what embedding reads \(at head.weight\)"):
        solved(asked, tiny.raised("rms", tied=True), data=None)


def test_a_tied_head_that_is_named_gets_a_branch():
    asked = Recipe.parse({"methods": [{"lorc": {"rank": 2, "weighted": False}}], "linears": {"head": "int3:g8:asym"}})
    quantised, _, lowered = stages(asked, tiny.raised("rms", tied=True))
    assert f"head.weight.{low_rank.UP}" in quantised.params
    assert torch.equal(lowered.run(tiny.ids())[0], quantised.run(tiny.ids())[0])


def test_one_weight_in_two_input_formats_keeps_both_when_the_branch_is_dropped():
    """A new scheme of a weight is one of its weight: what each linear reads its input in stays."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            codes = torch.randint(-127, 128, (24, 24)).float()
            codes[:, 0] = 127
            self.one, self.two = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)
            self.one.weight = self.two.weight = nn.Parameter(codes / 128)

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    lines = {"one": "w8a8-int8", "*": "w8a16"}
    asked = Recipe.parse({"methods": [{"lorc": {"rank": 2}}], "linears": lines})
    x = torch.randn(5, 24)
    found = qpass.trace(Two().eval(), asked, (x,), target="reference", calibration=[x])
    assert found.plan.bytes_after == 24 * 24 + 4 * 24  # one weight is one copy, however its inputs are read
    schemes = {str(choice.scheme) for _, choice in found.plan.choices}
    assert schemes == {str(Scheme.parse("w8a8-int8")), str(Scheme.parse("w8a16"))}


def test_nan_is_named():
    program = tiny.raised("rms")
    broken = program.tensor(NAME).clone()
    broken[1, 2] = float("nan")
    with pytest.raises(NumericsError, match=rf"the first at \(1, 2\) \(at {NAME}\)"):
        solved(recipe("w8a16", weighted=False), replace(program, params={**program.params, NAME: broken}))
    with pytest.raises(NumericsError, match="NaN or Inf"):
        model, x = nn.Sequential(nn.Linear(8, 8)).eval(), torch.full((2, 8), float("inf"))
        qpass.plan(model, recipe("w8a16"), (torch.randn(2, 8),), calibration=[x])


def test_scales_that_a_format_cannot_hold_are_named():
    program = tiny.raised("rms")
    params = {**program.params, NAME: program.tensor(NAME) * 1e-9}
    with pytest.raises(NumericsError, match=NAME):
        solved(recipe("int4:g10:sym:f16", weighted=False), replace(program, params=params))
