"""The CUDA operators in Triton's interpreter, against float64 of the same codes: ragged shapes, groups, extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qpass.errors import UnsupportedError
from qpass.formats import Format
from qpass.lowering.cuda import tiles, weights
from qpass.lowering.cuda.kernels import grouped, integers, load, scale_place
from qpass.lowering.cuda.weights import ONE_GROUP
from qpass.lowering.triton.layout import padded_rows
from qpass.numerics import codec, shift_cast
from qpass.numerics.scales import Scales

load()
ops = torch.ops.qpass_cuda
# rows of inputs, outputs, inputs: ragged in each, one row, a split K, and more rows than a tile
SHAPES = [(1, 16, 64), (3, 130, 300), (5, 40, 1100), (130, 24, 96)]


def counters(rows: int) -> Tensor:
    return torch.zeros(tiles.counters(padded_rows(rows)), dtype=torch.int32)


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seed) % 1000)


def inputs(m: int, k: int, text: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero of random rows; with more than two, a row of zeros, an all-equal and an extreme one."""
    x = torch.randn(m, k, generator=generator(m, k))
    if m > 2:
        x[0], x[1], x[2, 0] = 0, -3.5, 1e4
    return codec.quantize_rows(x, Format.parse(text))


def bound(x: Tensor, w: Tensor, steps: int) -> Tensor:
    """Error of a float32 sum of products in any order, with ``steps`` further roundings."""
    return 2.0**-24 * (x.shape[1] + steps) * (x.abs() @ w.abs().T) + 1e-30


def four_bit(n: int, k: int, text: str) -> tuple[Tensor, Scales, Format]:
    fmt = Format.parse(text)
    w = torch.randn(n, k, generator=generator(n, k))
    w[0] = 0
    w[-1] = 2
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    if not fmt.symmetric:  # all codes with all zero points, the extreme ones too
        codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator(n, k))
        found.zero.copy_(torch.randint(0, 16, found.zero.shape, generator=generator(k)))
    return codes, found, fmt


def values(codes: Tensor, found: Scales, fmt: Format) -> Tensor:
    """Float64 values of a weight, from the definition."""
    groups = torch.arange(codes.shape[1]) // (fmt.group or codes.shape[1])
    zero = 0 if found.zero is None else found.zero[:, groups].double()
    return (codes.double() - zero) * found.scale.double()[:, groups]


def packed(codes: Tensor, found: Scales, fmt: Format, order: str) -> tuple[tuple[Tensor, ...], tuple]:
    """(words, meta and scales apart; group, layout and kind of scale) of integer codes."""
    lay, (n, k) = grouped(fmt, order), codes.shape
    apart = weights.spread_scale(found.scale, lay, n, k) if weights.kept_apart(fmt) else None
    parts = (weights.pack_integers(codes, lay.layout), weights.meta(found.scale, found.zero, lay, n, k), apart)
    return parts, (lay.group, str(lay.layout), scale_place(fmt))


W4A16 = ["int4:g128:asym", "int4:g64:asym", "int4:g32:asym:f16", "int4:g32:asym:f32", "int4:channel:sym",
         "int4:g256:sym"]  # fmt: skip


@pytest.mark.parametrize("text", W4A16)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w4a16(shape: tuple[int, int, int], text: str) -> None:
    m, n, k = shape
    codes, found, fmt = four_bit(n, k, text)
    parts, kind = packed(codes, found, fmt, "bf16")
    x = torch.randn(m, k, generator=generator(m)).bfloat16().float()
    bias, count = torch.randn(n, generator=generator(n)), counters(n)
    out = ops.w4a16_linear(x, *parts, bias, count, n, *kind)
    w = values(codes, found, fmt)
    assert ((out - (x.double() @ w.T + bias)).abs() <= bound(x.double(), w, 40) + 2.0**-22 * bias.abs()).all()
    assert not count.any()


ASYM, SYM = "int8:token:asym", "int8:token:sym"
W4A8 = [("int4:g128:asym", ASYM), ("int4:g64:asym", SYM), ("int4:g32:asym", ASYM), ("int4:channel:asym", ASYM),
        ("int4:g256:sym:f16", SYM), ("int4:g32:sym", ASYM), ("int4:channel:full", SYM)]  # fmt: skip


@pytest.mark.parametrize(("text", "inputs_format"), W4A8)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w4a8_int8(shape: tuple[int, int, int], text: str, inputs_format: str) -> None:
    m, n, k = shape
    codes, found, fmt = four_bit(n, k, text)
    (words, meta, apart), kind = packed(codes, found, fmt, integers(fmt))
    x, scale, zero = inputs(m, k, inputs_format)
    shifted, moved = (x, None) if x.dtype is torch.int8 else ((x.short() - 128).to(torch.int8), zero - 128)
    sums, count = weights.scaled_sums(codes, found.scale, found.zero, fmt), counters(n)
    out = ops.w4a8_int8_linear(shifted, scale, moved, words, meta, apart, sums, None, count, n, *kind, torch.float32)
    w = values(codes, found, fmt)
    exact = (x.double() - zero) @ w.T * scale.double()
    # the sums of groups and the zero point's term are of the size of the moved codes, and cancel
    size = (shifted.double().abs() + (0 if moved is None else moved.abs())) * scale.double()
    assert ((out - exact).abs() <= bound(size, w, 40)).all()
    assert not count.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inputs_format", ["int8:token:asym", "int8:token:sym"])
def test_int8_is_bit_equal(shape: tuple[int, int, int], inputs_format: str) -> None:
    m, n, k = shape
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator(n))
    codes[0], codes[-1] = 127, -127
    w_scale, bias, count = torch.rand(n, generator=generator(k)), torch.randn(n), counters(n)
    x, scale, zero = inputs(m, k, inputs_format)
    shifted, moved = (x, None) if x.dtype is torch.int8 else ((x.short() - 128).to(torch.int8), zero - 128)
    out = ops.int8_linear(shifted, scale, moved, codes, w_scale, weights.row_sums(codes), bias, count, torch.float32)
    total = (x.double() - zero) @ codes.double().T
    assert torch.equal(out, total.float() * w_scale * scale + bias)
    assert not count.any()
    ones, unit = torch.ones(n), torch.ones_like(scale)  # with scales of 1 the int32 sums themselves come out
    sums = ops.int8_linear(shifted, unit, moved, codes, ones, weights.row_sums(codes), None, count, torch.float32)
    assert torch.equal(sums, total.float())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp8(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    fmt = Format.parse("e4m3:channel:sym")
    weight = torch.randn(n, k, generator=generator(n))
    found = codec.choose(weight, fmt)
    codes = codec.quantize(weight, found, fmt)
    x, scale, _ = inputs(m, k, "e4m3:token:sym")
    bias, count = torch.randn(n, generator=generator(n)), counters(n)
    out = ops.fp8_linear(x, scale, codes, found.scale.flatten(), bias, count, torch.float32)
    left, right = x.double() * scale, codes.double() * found.scale
    assert ((out - (left @ right.T + bias)).abs() <= bound(left, right, 40) + 2.0**-22 * bias.abs()).all()
    assert not count.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp8_blocks(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    weight_format, input_format = Format.parse("fp8-block"), Format.parse("fp8-group")
    if k < 128:
        k = 128
    weight = torch.randn(n, k, generator=generator(n)) * torch.rand(n, 1)
    found = codec.choose(weight, weight_format)
    codes = codec.quantize(weight, found, weight_format)
    x, scale, _ = codec.quantize_rows(torch.randn(m, k, generator=generator(m)), input_format)
    count = counters(n)
    out = ops.fp8_block_linear(x, scale, codes, found.scale, None, count, torch.float32)
    left = codec.decode(x, input_format).double() * scale.repeat_interleave(128, 1)[:, :k].double()
    blocks = found.scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k].double()
    right = codec.decode(codes, weight_format).double() * blocks
    assert ((out - left @ right.T).abs() <= bound(left, right, 40)).all()
    assert not count.any()


FP8 = ["e2m1:g256:sym:m2", "e2m1:g32:sym:m1", "e2m1:g64:sym:e8m0", "int4:g128:sym:m2plus", "e2m1:g256:sym:f16",
       "int4:g64:sym:f16", "e3m0:channel:sym"]  # fmt: skip


@pytest.mark.parametrize("text", FP8)
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_w4a8_fp8(shape: tuple[int, int, int], text: str) -> None:
    m, n, k = shape
    codes, found, fmt = four_bit(n, k, text)
    lay = grouped(fmt, "lut")
    x, scale, _ = inputs(m, k, "e4m3:token:sym")
    if fmt.scale_kind.is_real:
        tables, choice = weights.real_table(fmt), lay.spread(found.scale, n, k)
        factor, right = torch.ones(padded_rows(n)), codec.dequantize(codes, found, fmt, torch.float32).double()
    else:
        tables, choice = weights.tables(fmt), weights.choices(codes, found, fmt, lay)
        factor = weights.factors(codes, found, fmt)
        cast = shift_cast.cast_weight(codes, found, fmt)
        right = cast.bytes.double() * cast.factor.double()
        assert torch.equal(right.float(), codec.dequantize(codes, found, fmt, torch.float32))
    count = counters(n)
    out = ops.w4a8_fp8_linear(
        x, scale, weights.pack_signs(codes, lay.layout), tables, choice, factor, None, count, n,
        lay.group or ONE_GROUP, str(lay.layout), torch.float32,
    )  # fmt: skip
    left = x.double() * scale
    assert ((out - left @ right.T).abs() <= bound(left, right, 40)).all()
    assert not count.any()


def test_more_dimensions_and_no_rows() -> None:
    codes = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    arguments = (codes, torch.ones(24), weights.row_sums(codes), None, counters(24), torch.bfloat16)
    x = torch.randint(-127, 128, (2, 3, 64), dtype=torch.int8)
    out = ops.int8_linear(x, torch.ones(2, 3, 1), None, *arguments)
    flat = ops.int8_linear(x.view(6, 64), torch.ones(6, 1), None, *arguments)
    assert out.shape == (2, 3, 24) and out.dtype is torch.bfloat16 and torch.equal(out.view(6, 24), flat)
    empty = ops.int8_linear(x[:0], torch.ones(0, 3, 1), None, *arguments)
    assert empty.shape == (0, 3, 24)


def test_a_row_does_not_depend_on_the_others() -> None:
    codes, found, fmt = four_bit(130, 1100, "int4:g128:asym")
    words, kind = packed(codes, found, fmt, "bf16")
    parts = (*words, None, counters(130), 130, *kind)
    x = torch.randn(7, 1100)
    assert torch.equal(ops.w4a16_linear(x, *parts)[3:4], ops.w4a16_linear(x[3:4], *parts))


@pytest.mark.parametrize("change", ["shape", "dtype", "layout"])
def test_words_of_another_layout_are_refused(change: str) -> None:
    codes, found, fmt = four_bit(16, 128, "int4:g128:asym")
    (words, meta, _), (group, layout, kind) = packed(codes, found, fmt, "bf16")
    words = {"shape": words[:, :4], "dtype": words.to(torch.int64), "layout": words}[change]
    layout = "k256-bf16" if change == "layout" else layout
    text = r"w4a16_linear: packed words .* for a 16 x 128 weight in k\d+-bf16.*pack it again"
    with pytest.raises(UnsupportedError, match=text):
        ops.w4a16_linear(torch.randn(2, 128), words, meta, None, None, counters(16), 16, group, layout, kind)


def test_operands_that_do_not_fit_are_refused() -> None:
    codes, found, fmt = four_bit(16, 256, "int4:g128:asym")
    (words, meta, _), (group, layout, kind) = packed(codes, found, fmt, "bf16")
    x, count = torch.randn(2, 256), counters(16)
    with pytest.raises(UnsupportedError, match=r"w4a16_linear: words of groups \[1, 128\].*int32 \[2, 128\]"):
        ops.w4a16_linear(x, words, meta[:1], None, None, count, 16, group, layout, kind)
    with pytest.raises(UnsupportedError, match=r"w4a16_linear: groups of 48 in K blocks of 128.*a fourth of a block"):
        ops.w4a16_linear(x, words, meta, None, None, count, 16, 48, layout, kind)
    weight, one = torch.zeros(24, 64, dtype=torch.int8), torch.ones(24)
    for wrong, text in ((weight[:, :32], r"a weight \[24, 32\]"), (weight.t().contiguous().t(), r"strides \(1, 24\)")):
        with pytest.raises(UnsupportedError, match=rf"int8_linear: inputs \[2, 64\] of torch.int8 for .*{text}"):
            ops.int8_linear(weight[:2], one[:2, None], None, wrong, one, one.int(), None, count, torch.float32)
