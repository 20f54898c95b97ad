"""Every format's quantize and dequantize against its formula, written out here in float64 group by group."""

import pytest
import torch

from qpass.errors import NumericsError
from qpass.formats import GRIDS, SCHEMES, Format
from qpass.numerics import codec, grids, scales
from tests.numerics.test_grids import nearest

WEIGHTS = sorted({str(scheme.weight) for scheme in SCHEMES.values()} | {
    "int2:g64:asym", "int3:g32:asym:f16", "int6:channel:sym", "int8:channel:full", "int4:g32:full:f32",
    "e4m3fnuz:channel:sym", "e5m2fnuz:g32:sym:f32", "e4m3:tensor:sym", "int8:tensor:sym", "int8:b8x16:sym",
    "e2m1:g32:sym:e8m0-even", "e2m1:g32:sym:e8m0-ceil", "int4:g16:sym:m1", "int4:g16:sym:m2", "e2m1:channel:sym:m1",
    "e5m2:channel:sym", "e2m1:b4x32:sym",
})  # fmt: skip
INPUTS = sorted({str(scheme.input) for scheme in SCHEMES.values() if scheme.input and not scheme.input.static} | {
    "int4:token:asym", "int6:token:sym", "int8:token:full", "e5m2:token:sym", "int8:g32:asym:f32", "int8:tensor:asym",
    "e4m3:tensor:sym", "e2m1:g16:sym:m1", "e2m1:g16:sym:f32",
})  # fmt: skip


def parts_of(w, fmt):
    """(rows, columns) slices of what shares a scale."""
    rows = {"tensor": len(w), "block": fmt.rows}.get(fmt.granularity, 1)
    columns = fmt.group or w.shape[1]
    for first in range(0, len(w), rows):
        for left in range(0, w.shape[1], columns):
            yield slice(first, first + rows), slice(left, left + columns)


def rounded(scaled, fmt):
    """The value of the nearest code, brute force for floats of four bits, float64 rounding for integers."""
    if not fmt.grid.is_float:
        least, most = fmt.range
        return torch.clamp(torch.round(scaled), least, most)
    if fmt.bits == 4:
        return nearest(scaled.float().flatten(), fmt.grid).view(scaled.shape).double()
    return grids.decode(grids.encode(scaled.float(), fmt.grid), fmt.grid).double()


@pytest.mark.parametrize("text", WEIGHTS)
@pytest.mark.parametrize("width", [64, 70])
def test_weights_are_rounded_group_by_group(text, width):
    fmt = Format.parse(text)
    torch.manual_seed(0)
    w = torch.randn(12, width) * torch.exp(torch.randn(12, 1))
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    got = codec.dequantize(codes, found, fmt, torch.float32)
    assert codes.dtype == fmt.code_dtype and codes.shape == got.shape == w.shape
    assert found.scale.dtype == fmt.scale_dtype
    assert found.scale.shape == (fmt.scale_rows(12), fmt.groups(width))
    spread = codec.expand(scales.effective(found, fmt), w.shape, fmt).expand(w.shape)
    zeros = 0 if found.zero is None else codec.expand(found.zero, w.shape, fmt).double()
    for rows, columns in parts_of(w, fmt):
        scale, zero = spread[rows, columns], zeros if isinstance(zeros, int) else zeros[rows, columns]
        assert (scale == scale.flatten()[0]).all()
        amax = float(w[rows, columns].abs().max())
        if fmt.symmetric and fmt.scale_kind.is_real:
            # one rounding of the scale to its dtype, after one of the division
            slack = torch.finfo(fmt.scale_dtype).eps + 2**-23
            assert abs(float(scale.flatten()[0]) / (amax / fmt.max) - 1) <= slack
        ideal = rounded(w[rows, columns].double() / scale.double() + zero, fmt)
        exact = (ideal - zero) * scale.double()
        # w / s in float32, or w * (1 / s), may fall on the other side of a tie: then it is one step of the grid away
        off = (got[rows, columns].double() - exact).abs()
        here, there = (value - w[rows, columns].double() for value in (got[rows, columns].double(), exact))
        tie = here.abs() <= there.abs() * 1.0001
        assert ((off <= 2**-23 * exact.abs()) | tie).all()


@pytest.mark.parametrize("text", WEIGHTS)
def test_zeros_stay_zero_and_one_row_does_not_touch_another(text):
    fmt = Format.parse(text)
    assert torch.equal(codec.fake_quantize(torch.zeros(4, 64), fmt), torch.zeros(4, 64))
    w = torch.randn(12, 64)
    w[:, 32:] = 0  # groups of zeros beside others
    assert (codec.fake_quantize(w, fmt)[:, 32:] == 0).all()
    if fmt.granularity in ("channel", "group") and fmt.scale_kind.outer != "tensor":
        assert torch.equal(codec.fake_quantize(w, fmt)[3:5], codec.fake_quantize(w[3:5], fmt))


@pytest.mark.parametrize("text", WEIGHTS)
def test_quantizing_again_with_the_same_scales_changes_nothing(text):
    fmt = Format.parse(text)
    w = torch.randn(12, 70)
    found = codec.choose(w, fmt)
    once = codec.fake_quantize(w, fmt, found)
    torch.testing.assert_close(codec.fake_quantize(once, fmt, found), once, rtol=0, atol=0)


@pytest.mark.parametrize("text", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_rounded_row_by_row(text, dtype):
    fmt = Format.parse(text)
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 70) * 4 + 0.5).to(dtype)
    codes, scale, zero = codec.quantize_rows(x, fmt)
    assert codes.dtype == fmt.code_dtype and codes.shape == x.shape
    assert scale.shape == zero.shape == (2, 3, fmt.groups(70))
    assert scale.dtype is torch.float32 and zero.dtype is torch.int32
    got = codec.dequantize_rows(codes, scale, zero, fmt, torch.float32).double()
    spread, offset = (codec.spread(part, 70, fmt).double() for part in (scale, zero))
    exact = (rounded(x.double() / spread + offset, fmt) - offset) * spread
    tie = (got - x.double()).abs() <= (exact - x.double()).abs() * 1.0001
    clipped = exact.abs() < x.double().abs()  # x may land on either side of the last code
    assert (((got - exact).abs() <= 2**-22 * exact.abs()) | tie | (clipped & ((got - exact).abs() <= spread))).all()
    if fmt.granularity != "tensor":
        alone = codec.quantize_rows(x[1:, 2:], fmt)
        assert all(torch.equal(part[1:, 2:].view(torch.uint8), one.view(torch.uint8))
                   for part, one in zip((codes, scale, zero), alone))  # fmt: skip


@pytest.mark.parametrize("text", INPUTS)
def test_nan_and_infinity_reach_the_row_and_no_other(text):
    fmt = Format.parse(text)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.randn(3, 64)
        x[1, 5] = bad
        y = codec.dequantize_rows(*codec.quantize_rows(x, fmt), fmt, torch.float32)
        group = y[1, :16] if fmt.group else y[1]
        assert not torch.isfinite(group).all(), "NaN must never be clamped in silence"
        if fmt.granularity != "tensor":
            assert torch.isfinite(y[[0, 2]]).all()


ROWS = torch.tensor([[1, -2, 3, -127], [0.01, 0.02, -0.03, 0.127], [0, 0, 0, 0]])


def test_g11_rows_of_int8():
    codes, scale, _ = codec.quantize_rows(ROWS, Format.parse("int8:token:sym"))
    torch.testing.assert_close(scale[:2].flatten(), torch.tensor([1, 0.001]))
    assert codes.tolist() == [[1, -2, 3, -127], [10, 20, -30, 127], [0, 0, 0, 0]]


def test_g12_rows_of_e4m3():
    codes, scale, _ = codec.quantize_rows(ROWS, Format.parse("e4m3:token:sym"))
    torch.testing.assert_close(scale[:2].flatten(), torch.tensor([127 / 448, 0.127 / 448]))
    assert codes[:2].view(torch.uint8).tolist() == [[0x46, 0xCE, 0x53, 0xFE], [0x61, 0x69, 0xED, 0x7E]]
    assert (codes[2].float() == 0).all()


@pytest.mark.parametrize(("text", "relative", "absolute"), [
    ("int8:token:sym", 0, 0.5), ("e4m3:token:sym", 2**-4, 2**-10), ("e5m2:token:sym", 2**-3, 2**-17),
])  # fmt: skip
def test_g13_error_bounds(text, relative, absolute):
    fmt, x = Format.parse(text), torch.randn(64, 256).double() * torch.exp(2 * torch.randn(64, 256).double())
    x = x.float()
    codes, scale, zero = codec.quantize_rows(x, fmt)
    error = (codec.dequantize_rows(codes, scale, zero, fmt, torch.float32).double() - x.double()).abs()
    bound = torch.maximum(relative * x.double().abs(), absolute * scale.double())
    assert (error <= bound * (1 + 2**-20)).all()


@pytest.mark.parametrize("text", ["int8:token:sym", "int8:token:asym", "e4m3:token:sym", "mxfp8", "nvfp4"])
def test_g14_rows_and_powers_of_two_commute(text):
    fmt, x = Format.parse(text), torch.randn(8, 64)
    codes = codec.quantize_rows(x, fmt)[0].view(torch.uint8)
    order = torch.randperm(8)
    assert torch.equal(codec.quantize_rows(x[order], fmt)[0].view(torch.uint8), codes[order])
    powers = torch.exp2(torch.randint(-8, 8, (8, 1)).float())
    assert torch.equal(codec.quantize_rows(x * powers, fmt)[0].view(torch.uint8), codes)


@pytest.mark.parametrize(("text", "most"), [("int8:token:sym", 127), ("e4m3:token:sym", 448)])
def test_g15_each_row_reaches_the_end_and_is_not_clipped(text, most):
    fmt, x = Format.parse(text), torch.randn(64, 96)
    codes, scale, _ = codec.quantize_rows(x, fmt)
    assert (codes.float().abs().amax(-1) == most).all()
    assert ((x / scale).abs() <= most * (1 + 2**-22)).all()


def test_g16_int32_accumulators():
    assert 131_071 * 2**14 < 2**31 <= 131_072 * 2**14
    assert 1040 * 127 * 127 <= 2**24 < 1041 * 127 * 127


def test_g17_scales_of_rows_and_channels_come_out_of_the_sum():
    x, w = torch.randn(5, 64), torch.randn(7, 64)
    inputs, weights = Format.parse("int8:token:sym"), Format.parse("int8:channel:sym")
    codes, scale, _ = codec.quantize_rows(x, inputs)
    found = codec.choose(w, weights)
    w_codes = codec.quantize(w, found, weights)
    sums = codes.int() @ w_codes.int().T
    factored = sums.double() * scale.double() * found.scale.double().T
    whole = (codes.double() * scale.double()) @ (w_codes.double() * found.scale.double()).T
    torch.testing.assert_close(factored, whole, rtol=1e-6, atol=1e-6)


def test_g8_deepspeeds_rule():
    w = torch.tensor([[-1, -0.5, 0, 0.3, 1]])
    assert codec.fake_quantize(w, Format.parse("int8:channel:full")).tolist() == [[-1, -0.5, 0, 0.296875, 0.9921875]]
    assert codec.fake_quantize(w, Format.parse("int4:channel:full")).tolist() == [[-1, -0.5, 0, 0.25, 0.875]]


def test_g9_the_textbook_rule():
    w = torch.tensor([[-1, -0.5, 0, 0.3, 1]])
    codes = [codec.quantize(w, codec.choose(w, fmt), fmt).tolist()
             for fmt in map(Format.parse, ("int8:channel:sym", "int4:channel:sym"))]  # fmt: skip
    assert codes[0] == [[-127, -64, 0, 38, 127]]
    # 0.5 · 7 is a tie, which the rounding of 1 / 7 to float32 decides
    assert codes[1][0][:1] + codes[1][0][2:] == [-7, 0, 2, 7] and codes[1][0][1] in (-3, -4)


def test_g10_halves_go_to_the_even_code():
    fmt, one = Format.parse("int8:channel:sym"), scales.Scales(torch.ones(1, 1))
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5]])
    assert codec.quantize(x, one, fmt).tolist() == [[0, 2, 2, 0]]


def test_g3_error_of_e2m1():
    fmt = Format.parse("e2m1:channel:sym:f32")
    w = torch.randn(64, 256)
    step = codec.choose(w, fmt).scale
    size, error = w.abs() / step, (codec.fake_quantize(w, fmt) - w).abs() / step
    bound = torch.where(size <= 2, 0.25, torch.where(size <= 4, 0.5, 1.0))
    assert (error <= bound * (1 + 2**-20)).all()


def test_g23_products_of_grid_values():
    e2m1 = torch.tensor(GRIDS["e2m1"].values, dtype=torch.float64)
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).double()
    e4m3 = every[torch.isfinite(every)]
    mixed = e2m1[:, None] * e4m3
    assert float(mixed.abs().max()) == 2688 and float(mixed[mixed > 0].min()) == 2**-10
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(mixed.to(dtype).double(), mixed)
    square = e4m3[:, None] * e4m3
    assert float(square.abs().max()) == 200704
    assert torch.equal(square.to(torch.bfloat16).double(), square)
    assert not torch.isfinite(square.to(torch.float16)).all()


def test_g24_nvfp4_is_not_exact_in_fp8():
    every = torch.arange(1, 127, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).double()
    products = every[:, None] * torch.tensor(GRIDS["e2m1"].values[1:8], dtype=torch.float64)
    fits = (products <= 448) & (grids.decode(grids.encode(products.float(), GRIDS["e4m3"]), GRIDS["e4m3"]) == products)
    assert products.numel() == 882 and int(fits.sum()) == 607


@pytest.mark.parametrize(("size", "what"), [(1e-9, "too small for f16"), (1e9, "too large for f16")])
@pytest.mark.parametrize("element", ["int4", "e2m1"])
def test_scales_that_their_dtype_cannot_hold_are_refused(size, what, element):
    w = torch.randn(4, 64)
    w[2, 32:] *= size
    with pytest.raises(NumericsError) as error:
        codec.choose(w, Format.parse(f"{element}:g32:sym:f16"))
    assert f"1 scales are {what}, the first at (2, 1) of [row, group]. Fix: use a scale of f32" in str(error.value)
    for scale in ("f32", "bf16", "m1"):
        assert torch.isfinite(codec.fake_quantize(w, Format.parse(f"{element}:g32:sym:{scale}"))).all()
