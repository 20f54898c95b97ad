"""Rows of a cache of codes: what they hold is what rounding gives, bit for bit, and lies where the page says."""

from __future__ import annotations

import pytest
import torch

from qpass.formats import GRIDS, Format
from qpass.numerics import codec, kv_rows

INTEGERS = [f"int{bits}:{where}:{zero}" for bits in range(2, 9) for where in ("token", "g16") for zero in
            ("sym", "asym", "full")]  # fmt: skip
FLOATS = [f"{name}:{where}:sym" for name, grid in GRIDS.items() if grid.is_float for where in ("token", "g16")]
SCALED = ["mxfp4", "mxfp8", "nvfp4", "e2m1:g32:sym:m1", "e4m3:g8:sym:e8m0-even", "int4:g8:sym:e8m0-ceil"]
FORMATS = [form + ":f32" if ":g16" in form else form for form in (*INTEGERS, *FLOATS)] + SCALED


def rows(width, dtype=torch.float32):
    """Usual rows, and those of zeros, of one value, of the largest and of the least numbers, with one large value."""
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(2, 3, 5, width, generator=draw)
    x[0, 0, 0] = 0
    x[0, 0, 1] = 0.37
    x[0, 0, 2] = -5
    x[0, 1, 0] *= 1e30
    x[0, 1, 1] *= 1e-30
    x[0, 1, 2, 0] = 1e4
    x[0, 2] = x[0, 2].abs()
    x[1, 0] = -x[1, 0].abs()
    x[1, 1, 0] = torch.finfo(torch.float32).tiny / 4
    return x.to(dtype)


def same(one, two):
    """Bit for bit, NaN where the other has NaN."""
    kind = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}[one.dtype]
    nan = one.isnan() & two.isnan()
    return one.dtype == two.dtype and one.shape == two.shape and bool(((one.view(kind) == two.view(kind)) | nan).all())


@pytest.mark.parametrize("form", FORMATS)
def test_unpacked_is_rounded(form):
    fmt = Format.parse(form)
    for width in (32, 31, 34):
        for dtype in (torch.float32, torch.bfloat16):
            x = rows(width, dtype)
            held = kv_rows.pack(x, fmt)
            assert held.dtype is torch.int8 and held.shape == (*x.shape[:-1], kv_rows.width(fmt, width))
            assert held.shape[-1] % kv_rows.ALIGN == 0
            assert same(kv_rows.unpack(held, fmt, width, dtype), codec.round_rows(x, fmt))


@pytest.mark.parametrize("form", ["int8:token:asym", "int4:g16:asym:f32", "e4m3:token:sym", "mxfp4"])
def test_rows_do_not_depend_on_each_other(form):
    fmt, x = Format.parse(form), rows(32)
    whole = kv_rows.pack(x, fmt)
    assert torch.equal(torch.cat([kv_rows.pack(x[..., t : t + 1, :], fmt) for t in range(5)], -2), whole)
    strided = kv_rows.pack(x.transpose(1, 2).contiguous().transpose(1, 2), fmt)
    assert torch.equal(strided, whole)
    assert same(kv_rows.unpack(whole[:, :, ::2], fmt, 32, x.dtype), codec.round_rows(x, fmt)[:, :, ::2])


@pytest.mark.parametrize("form", ["int8:token:asym", "int4:token:asym", "e4m3:token:sym"])
def test_nan_stays_in_its_row(form):
    fmt, x = Format.parse(form), rows(32)
    x[0, 0, 3, 7], x[1, 2, 4, 0] = float("nan"), float("inf")
    assert same(kv_rows.unpack(kv_rows.pack(x, fmt), fmt, 32, x.dtype), codec.round_rows(x, fmt))


def test_where_the_bytes_lie():
    """By hand: codes from 0 to 255 with a step of 1/8 and a zero point of 64, and codes of four bits."""
    x = torch.zeros(1, 6)
    x[0, :3] = torch.tensor([-8.0, 23.875, 0.125])
    held = kv_rows.pack(x, Format.parse("int8:token:asym"))[0]
    assert held.tolist()[:8] == [0 - 128, 255 - 128, 65 - 128, 64 - 128, 64 - 128, 64 - 128, 0, 0]
    assert held[8:12].view(torch.float32).item() == 0.125 and held[12:].view(torch.int32).tolist() == [64]
    x = torch.tensor([[7.0, -1.0, 3.0]])
    held = kv_rows.pack(x, Format.parse("int4:token:sym"))[0]
    assert held.tolist()[:4] == [(7 | 15 << 4) - 256, 3, 0, 0] and held[4:8].view(torch.float32).item() == 1.0
    assert not held[8:].any() and len(held) == 16
    held = kv_rows.pack(torch.tensor([[15.0, 1.0]]), Format.parse("int4:token:asym"))[0]
    assert held[0] == (15 | 1 << 4)


@pytest.mark.parametrize(("form", "width", "bytes"), [
    ("int8:token:asym", 128, 144), ("int8:token:sym", 128, 144), ("int8:token:asym", 64, 80),
    ("int4:token:asym", 128, 80),
    ("int4:g32:asym:f32", 128, 96), ("e4m3:token:sym", 64, 80), ("int6:token:asym", 64, 80), ("mxfp4", 128, 80),
    ("int2:token:sym", 8, 16),
])  # fmt: skip
def test_width(form, width, bytes):
    assert kv_rows.width(Format.parse(form), width) == bytes
