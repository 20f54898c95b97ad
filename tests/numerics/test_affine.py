"""Affine quantization against its formulas, written out here in float64."""

import pytest
import torch

from qpass.formats import Format
from qpass.numerics import affine

FORMATS = ["int8:channel:sym", "int8:channel:asym", "int4:g32:asym", "int4:g128:sym", "int4:g6:asym"]


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("width", [64, 70, 704])
def test_round_trip_is_within_half_a_step(text, width):
    fmt = Format.parse(text)
    w = torch.randn(12, width)
    scale, zero = affine.choose(w, fmt)
    codes = affine.quantize(w, scale, zero, fmt)
    back = affine.dequantize(codes, scale, zero, fmt, torch.float32)
    step = scale.double().repeat_interleave(fmt.group or width, 1)[:, :width]
    # half a step; the scale of a group is rounded to bfloat16 (relative 2^-8), which can clip the ends by its share
    slack = 0.5 + (2.0**-8 * 2**fmt.bits if fmt.granularity == "group" else 1e-4)
    assert ((back.double() - w.double()).abs() <= step * slack).all()
    assert codes.dtype == fmt.code_dtype and codes.shape == w.shape


@pytest.mark.parametrize("text", ["int4:g32:asym", "int4:g32:sym"])
def test_a_short_last_group_is_quantized_as_if_it_were_alone(text):
    fmt = Format.parse(text)
    w = torch.randn(8, 80)
    whole = affine.choose(w, fmt)
    tail = affine.choose(w[:, 64:], fmt)
    for one, two in zip(whole, tail):
        assert torch.equal(one[:, 2:], two)
    assert torch.equal(affine.quantize(w, *whole, fmt)[:, 64:], affine.quantize(w[:, 64:], *tail, fmt))


@pytest.mark.parametrize("text", FORMATS)
def test_rows_taken_a_few_at_a_time_give_the_same(text, monkeypatch):
    fmt = Format.parse(text)
    w = torch.randn(11, 70)
    whole = affine.choose(w, fmt)
    codes = affine.quantize(w, *whole, fmt)
    monkeypatch.setattr(affine, "AT_ONCE", 4 * 70)
    assert all(torch.equal(one, two) for one, two in zip(affine.choose(w, fmt), whole))
    assert torch.equal(affine.quantize(w, *whole, fmt), codes)


def test_zero_rows_stay_zero():
    for text in FORMATS:
        fmt = Format.parse(text)
        w = torch.zeros(4, 64)
        scale, zero = affine.choose(w, fmt)
        codes = affine.quantize(w, scale, zero, fmt)
        assert torch.equal(affine.dequantize(codes, scale, zero, fmt, torch.float32), w)


@pytest.mark.parametrize("text", ["int8:token:asym", "int8:token:sym"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_follow_the_formula(text, dtype):
    fmt = Format.parse(text)
    x = (torch.randn(3, 5, 96) + 0.3).to(dtype)
    codes, scale, zero = affine.quantize_rows(x, fmt)
    wide = x.float()
    low, high = wide.amin(-1, keepdim=True).clamp(max=0), wide.amax(-1, keepdim=True).clamp(min=0)
    least, most = fmt.range
    want = torch.maximum(-low, high) / 127 if fmt.symmetric else (high - low) / 255
    torch.testing.assert_close(scale, want)
    offset = torch.zeros_like(zero) if fmt.symmetric else torch.round(-low / want).to(torch.int32)
    assert torch.equal(zero, offset)
    ideal = torch.clamp(torch.round(wide.double() / scale.double()) + zero, least, most)
    # x / s and x * (1 / s) differ in the last bit: a value halfway between two codes may take either
    assert ((codes.double() - ideal).abs() <= 1).all() and (codes.double() == ideal).double().mean() > 0.99
