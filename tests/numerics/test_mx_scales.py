"""MX and NVFP4 scales: the rules by their tables, and bit for bit against torchao's emulation where it is there."""

import pytest
import torch

from qpass.formats import Format
from qpass.numerics import codec, groups, powers, scales
from qpass.numerics.packing import unpack

RULES = {"floor": "e8m0", "rceil": "m1", "ceil": "e8m0-ceil", "even": "e8m0-even"}
NAN, INF = float("nan"), float("inf")


def form(element, rule, group=32):
    return Format(element, "group", group, scale=RULES[rule])


def chosen(amax, element, rule):
    """The scale of one group whose largest magnitude is amax."""
    w = torch.zeros(1, 32)
    w[0, 7] = -amax
    return float(scales.effective(codec.choose(w, form(element, rule)), form(element, rule)))


@pytest.mark.parametrize(
    ("element", "amax", "floor", "rceil", "even"),
    [
        ("e2m1", 3, 0.5, 0.5, 0.5), ("e2m1", 3.1, 0.5, 1, 0.5), ("e2m1", 3.5, 0.5, 1, 1), ("e2m1", 6, 1, 1, 1),
        ("e2m1", 6.5, 1, 2, 1), ("e2m1", 7, 1, 2, 2), ("e2m1", 8, 2, 2, 2), ("e4m3", 224, 0.5, 0.5, 0.5),
        ("e4m3", 240, 0.5, 1, 0.5), ("e4m3", 448, 1, 1, 1), ("e4m3", 449, 1, 2, 1), ("e4m3", 512, 2, 2, 2),
    ],
)  # fmt: skip
def test_g32_the_rules(element, amax, floor, rceil, even):
    assert [chosen(amax, element, rule) for rule in ("floor", "rceil", "even")] == [floor, rceil, even]
    for power in (2.0**-20, 2.0**17):
        assert chosen(amax * power, element, "floor") == floor * power


@pytest.mark.parametrize(("element", "emax"), [("e2m1", 2), ("e4m3", 8), ("e5m2", 15)])
def test_g32_the_rules_by_their_formulas(element, emax):
    torch.manual_seed(0)
    fmt = form(element, "floor")
    amax = torch.cat([torch.rand(2000) * 9, torch.exp2(torch.randint(-60, 60, (400,)).float())])
    log2 = torch.log2(amax.double())
    got = {rule: powers.from_e8m0(scales.from_amax(amax[:, None], form(element, rule)).scale)[:, 0] for rule in RULES}
    assert torch.equal(got["floor"], torch.exp2(log2.floor() - emax).float())
    assert torch.equal(got["ceil"], torch.exp2(log2.ceil() - emax).float())
    assert torch.equal(got["rceil"], torch.exp2(torch.log2(amax.double() / fmt.max).ceil()).float())
    step = torch.exp2(log2.floor() - fmt.grid.mantissa)  # EVEN: rounded half up to the element's mantissa
    rounded = torch.floor(amax.double() / step + 0.5) * step
    assert torch.equal(got["even"], torch.exp2(torch.log2(rounded).floor() - emax).float())


def test_g31_m1_is_rceil_of_mx():
    """M1's formula on the group's scale is MX's on the block: 2^⌈log2 (amax / 6)⌉."""
    torch.manual_seed(0)
    w = torch.randn(16, 256) * torch.exp(torch.randn(16, 1))
    found = codec.choose(w, form("e2m1", "rceil"))
    want = torch.exp2(torch.ceil(torch.log2(w.view(16, 8, 32).abs().amax(-1).double() / 6)))
    assert torch.equal(powers.from_e8m0(found.scale).double(), want)


@pytest.mark.parametrize("rule", RULES)
def test_g32_blocks_of_zeros_and_of_what_is_not_finite(rule):
    fmt = form("e2m1", rule)
    w = torch.randn(4, 32)
    w[0], w[1, 3], w[2, 4] = 0, NAN, -INF
    found = codec.choose(w, fmt)
    assert found.scale[:3].flatten().tolist() == [0, 255, 255]
    values = codec.fake_quantize(w, fmt, found)
    assert (values[0] == 0).all() and torch.isnan(values[1:3]).all() and torch.isfinite(values[3]).all()
    # inputs of zeros have the scale 1: 2^-127 may be flushed to 0 where they are divided by it
    codes, scale, zero = codec.quantize_rows(w, fmt)
    assert float(scale[0]) == 1 and (codec.dequantize_rows(codes, scale, zero, fmt, torch.float32)[0] == 0).all()


def emulation():
    module = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    return module, pytest.importorskip("torchao.prototype.mx_formats.config")


def blocks(kind):
    torch.manual_seed(0)
    w = torch.randn(64, 256) * torch.exp2(torch.randint(-30, 30, (64, 8)).float()).repeat_interleave(32, 1)
    w[1, 32:64] = 0
    w[2] = 0
    if kind == "nan":
        w[3, 40], w[4, 7] = NAN, NAN
    w[5] = 6 * 2.0**-3
    w[6, 0] = 448.0
    return w


@pytest.mark.parametrize("element", ["e2m1", "e4m3", "e5m2"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["finite", "nan"])
def test_g32_bit_for_bit_as_torchao(element, rule, kind):
    mx, config = emulation()
    dtype = {"e2m1": torch.float4_e2m1fn_x2, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[element]
    w, fmt = blocks(kind), form(element, rule)
    scale, data = mx.to_mx(w, dtype, 32, config.ScaleCalculationMode[rule.upper()])
    found = codec.choose(w, fmt)
    assert torch.equal(found.scale, scale.view(torch.uint8).view(found.scale.shape))
    codes = codec.quantize(w, found, fmt)
    theirs = unpack(data.view(torch.uint8).view(64, 128), 256) if element == "e2m1" else data.view(torch.uint8)
    mine = codes.view(torch.uint8)
    whole = torch.isfinite(w.view(64, 8, 32).sum(-1, keepdim=True)).expand(64, 8, 32).reshape(64, 256)
    assert torch.equal(mine[whole], theirs[whole])
    # blocks with NaN are NaN by their scale, whatever their codes are
    values = codec.dequantize(codes, found, fmt, torch.float32)
    back = mx.to_dtype(data, scale, dtype, 32, torch.float32).view(64, 256)
    assert torch.equal(torch.isnan(values), torch.isnan(back)) and torch.equal(torch.isnan(values), ~whole)
    assert torch.equal(values[whole], back[whole])


def test_nvfp4_as_torchao():
    """Scales bit for bit. Codes too, but where w lies between two values, up to the last bits of its division."""
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    torch.manual_seed(0)
    w, fmt = torch.randn(64, 256) * torch.exp(torch.randn(64, 256)), Format.parse("nvfp4")
    w[1, 16:32], w[2] = 0, 0
    found = codec.choose(w, fmt)
    outer = nv.per_tensor_amax_to_scale(w.abs().max())
    scale, data = nv.nvfp4_quantize(w, 16, outer)
    assert torch.equal(found.outer, outer.reshape(1, 1))
    assert torch.equal(found.scale.view(torch.uint8), scale.view(torch.uint8).view(found.scale.shape))
    theirs, mine = unpack(data.view(torch.uint8).view(64, 128), 256), codec.quantize(w, found, fmt)
    off = (theirs != mine).nonzero(as_tuple=True)
    assert len(off[0]) < 10
    whole = w / codec.expand(scales.effective(found, fmt), w.shape, fmt)
    middle = (codec.decode(theirs, fmt) + codec.decode(mine, fmt))[off] / 2
    assert ((whole[off] / middle - 1).abs() <= 2**-21).all()


def test_nvfp4_two_levels():
    """s_T = amax / (448 · 6), and the E4M3 number nearest to amax_b / 6 / s_T, from 2^-6."""
    w, fmt = torch.zeros(1, 48), Format.parse("nvfp4")
    w[0, 0], w[0, 20], w[0, 40] = 448 * 6, -6 * 100.0, 6 * 2.0**-9
    found = codec.choose(w, fmt)
    assert float(found.outer) == 1 and found.scale.float().tolist() == [[448, 96, 2.0**-6]], "100 is a tie: to even"
    assert torch.isnan(codec.fake_quantize(torch.where(w == w.max(), NAN, w), fmt)).all()


def test_group_maxima():
    w = torch.randn(10, 20).to(torch.bfloat16)
    blocks_of = groups.group_amax(w, Format.parse("e4m3:b4x8:sym"))
    assert blocks_of.shape == (3, 3) and float(blocks_of[2, 2]) == float(w[8:, 16:].abs().max())
    cut = groups.parts(w.float(), Format.parse("e4m3:b4x8:sym"))
    assert cut.shape == (3, 4, 3, 8) and torch.equal(cut.abs().amax((1, 3)), blocks_of)
