"""Every named scheme through every stage: QUANTISED against an oracle, FUSED and LOWERED against QUANTISED."""

import copy
import functools
import re
from functools import partial

import pytest
import torch
from torch import nn

from qpass.errors import InputError
from qpass.formats import SCHEMES, Format, Scheme
from qpass.graph.program import materialise
from qpass.graph.values import op_name
from qpass.lowering.reference import target
from qpass.numerics import codec, grids
from qpass.observe.run import observe
from qpass.passes.calibrate import calibrate
from qpass.passes.fuse import fuse
from qpass.passes.lower import lower
from qpass.passes.plan import plan_program, summarise
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.stages import check
from tests import tiny


def small(scheme):
    """The scheme with groups that fit a tiny model."""
    return re.sub(r"\bg\d+\b", "g10", re.sub(r"b\d+x\d+", "b10x10", str(scheme)))


NAMES = sorted(set(SCHEMES) - {"w8a8-int8-static"})
BRANCHED = ["w4a16-g128", "w8a8-int8", "w4a8-fp", "mxfp4", "nvfp4"]  # lorc's tests take every scheme with a branch
CASES = [*((name, "") for name in NAMES), *((name, branch) for name in BRANCHED for branch in (":r2", ":r2-f16"))]


@functools.cache
def raised(dtype):
    return tiny.raised("rms", dtype=dtype)


def stages(text, dtype=torch.float32, data=None):
    recipe = Recipe.parse({"linears": {"*": text}})
    planned = plan_program(raised(dtype), recipe, target)
    quantised = check(quantise(check(calibrate(planned, recipe, data))))
    fused = check(fuse(quantised))
    return quantised, fused, check(lower(fused))


def oracle(scheme):
    """A copy of the model whose linears compute on operands that are rounded value by value."""
    model = copy.deepcopy(tiny.Decoder("rms")).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = by_value(module.weight.data, scheme.weight)
            if scheme.input:
                module.register_forward_pre_hook(lambda _, args: (by_value(args[0], scheme.input), *args[1:]))
    return model


def by_value(x, fmt):
    """Round in float32 with the scales that the codec chooses, each value by itself: no codes, no primitives."""
    weight = x.dim() == 2
    found = codec.choose(x, fmt) if weight else None
    parts = (codec.scales.effective(found, fmt), found.zero) if found else codec.quantize_rows(x, fmt)[1:]
    shape, width = x.shape, x.shape[-1]
    wide = partial(codec.expand, shape=shape) if weight else partial(codec.spread, width=width)
    scale, zero = (0 if part is None else wide(part, fmt=fmt) for part in parts)
    if fmt.grid.is_float:
        return grids.decode(grids.encode(x / scale, fmt.grid), fmt.grid) * scale
    return (torch.clamp(torch.round(x * (1 / scale)) + zero, *fmt.range) - zero) * scale


@pytest.mark.parametrize("name", NAMES)
def test_quantised_equals_the_oracle(name):
    scheme = Scheme.parse(small(SCHEMES[name]))
    quantised, _, _ = stages(str(scheme))
    ids = tiny.ids(3, 7)
    with torch.no_grad():
        want = oracle(scheme)(ids)
    got = quantised.run(ids)[0]
    # x / s and x * (1 / s) differ in the last bit, which can move a value that lies between two codes by one of them
    assert (got - want).norm() / want.norm() < 2e-2 if scheme.input else torch.allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "branch"), CASES)
def test_fused_and_lowered_are_bit_equal(name, branch):
    weight, *rest = small(SCHEMES[name]).split(" x ")
    for dtype in (torch.float32, torch.bfloat16) if name in BRANCHED and not branch else (torch.bfloat16,):
        quantised, fused, lowered = stages(" x ".join((weight + branch, *rest)), dtype)
        ids = tiny.ids(3, 7)
        (got,) = quantised.run(ids)
        assert got.dtype is dtype and torch.isfinite(got).all()
        assert torch.equal(fused.run(ids)[0], got) and torch.equal(lowered.run(ids)[0], got)


@pytest.mark.parametrize("name", NAMES)
def test_stored_tensors_are_what_the_format_says(name):
    scheme = Scheme.parse(small(SCHEMES[name]))
    quantised, _, _ = stages(str(scheme))
    tensors = materialise(quantised)
    codes = tensors["layers.0.mlp.down_proj.weight.codes"]
    scale = tensors["layers.0.mlp.down_proj.weight.scale"]
    assert codes.dtype == scheme.weight.code_dtype and codes.shape == (16, 24)
    assert scale.dtype == scheme.weight.scale_dtype
    assert scale.shape == (scheme.weight.scale_rows(16), scheme.weight.groups(24))
    has = {part for part in ("zero", "outer") if f"layers.0.mlp.down_proj.weight.{part}" in tensors}
    assert has == ({"zero"} - ({"zero"} if scheme.weight.symmetric else set())) | (
        {"outer"} if scheme.weight.scale_kind.outer else set()
    )
    assert all(tensors[key].dtype == quantised.like(key).dtype for key in tensors)


def test_torchaos_primitives_wherever_they_fit():
    def ops(text):
        return {op_name(node.target) for node in stages(text)[0].nodes()}

    assert not {op for op in ops("int4:g10:asym x int8:token:asym") if op.startswith("qpass.")} & QUANT
    fp8 = ops("e4m3:g10:sym:f32 x e4m3:token:sym")
    assert not fp8 & QUANT and "torchao.dequantize_affine_float8_non_decomposed" in fp8
    assert ops("e2m1:g10:sym:f16") & QUANT == {"qpass.dequantize_weight"}


QUANT = {"qpass.quantize", "qpass.quantize_static", "qpass.dequantize_input", "qpass.dequantize_weight"}


def test_a_branch_is_two_linears_and_lowers_the_error():
    plain, _, _ = stages("int2:g10:asym")
    branched, fused, _ = stages("int2:g10:asym:r4")
    ids = tiny.ids(3, 7)
    want = raised(torch.float32).run(ids)[0]
    assert (branched.run(ids)[0] - want).norm() < (plain.run(ids)[0] - want).norm()
    kinds = [op_name(node.target) for node in fused.nodes()]
    assert kinds.count("qpass.weight_only_linear") == 3 * 15


def test_the_plan_counts_the_branch():
    recipe = Recipe.parse({"linears": {"*": "int4:g10:asym:r2"}})
    with_branch = summarise(plan_program(raised(torch.float32), recipe, target), recipe, target)
    without = Recipe.parse({"linears": {"*": "int4:g10:asym"}})
    plain = summarise(plan_program(raised(torch.float32), without, target), without, target)
    branches = sum(Format.parse("int4:g10:asym:r2").branch_bytes(*choice.shape) for _, choice in plain.choices)
    assert with_branch.bytes_after - plain.bytes_after == branches > 0


def test_static_inputs_use_the_range_that_was_seen():
    ids = tiny.ids(3, 7)
    text = "int8:channel:sym x int8:tensor:asym:static"
    quantised, fused, lowered = stages(text, data=[(ids,)])
    (got,) = quantised.run(ids)
    assert torch.equal(fused.run(ids)[0], got) and torch.equal(lowered.run(ids)[0], got)
    want = raised(torch.float32).run(ids)[0]
    assert (got - want).norm() / want.norm() < 0.05
    name = "layers.0.mlp.down_proj.weight"
    seen = observe(raised(torch.float32), [(ids,)], ["layers.0.mlp/mul"])["layers.0.mlp/mul"]
    ends = max(float(seen.high.max()), 0) - min(float(seen.low.min()), 0)
    assert float(quantised.tensor(f"{name}.input_scale")) == pytest.approx(ends / 255)
    # a row far outside of what was seen is clipped: nothing is computed when it is seen
    assert op_name(fused.value("layers.0.mlp/mul.codes").target) == "qpass.quantize_static"


def test_static_inputs_need_data():
    with pytest.raises(InputError, match="a static input format looks at data, and there is none"):
        stages("int8:channel:sym x int8:tensor:sym:static")
