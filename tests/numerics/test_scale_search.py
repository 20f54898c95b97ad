"""Searched scales: never worse than round to nearest, and the best of all candidates by brute force."""

import pytest
import torch

from qpass.errors import NumericsError
from qpass.formats import SCHEMES, Format
from qpass.numerics import codec, elements, grids, groups, scale_search, scales
from qpass.numerics.group_error import weight_error
from qpass.numerics.scales import Scales

FORMATS = sorted({str(scheme.weight) for scheme in SCHEMES.values()} | {
    "int2:g64:asym", "int3:g32:asym:f16", "int8:channel:full", "int4:g32:full:f32", "e5m2fnuz:g32:sym:f32",
    "e4m3:tensor:sym", "int4:tensor:sym", "int8:b8x16:sym", "e2m1:b8x16:sym:m1", "e2m1:g32:sym:e8m0-even",
    "e2m1:g32:sym:e8m0-ceil", "int4:g16:sym:m1", "int4:g16:sym:m2", "int4:channel:asym", "e3m0:g32:sym:m2plus",
})  # fmt: skip


def weights(rows=24, width=70, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, width) * torch.exp(torch.randn(rows, width))


def errors(w, found, fmt, weight_K=None, power=2.0):
    """[R, G] float64 by the codec's own values, not by what the search computes."""
    off = (codec.fake_quantize(w, fmt, found).double() - w.double()).abs() ** power
    off = off * (1 if weight_K is None else weight_K.double())
    return groups.parts(off, fmt).sum((1, 3))


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("power", [2.0, 2.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_never_worse_than_round_to_nearest(text, power, weighted):
    fmt, w = Format.parse(text), weights()
    weight_K = torch.rand(70) ** 3 if weighted else None
    found, usual = scale_search.search(w, fmt, power=power, weight_K=weight_K), codec.choose(w, fmt)
    assert [None if part is None else (part.shape, part.dtype) for part in found] == [
        None if part is None else (part.shape, part.dtype) for part in usual
    ]
    mine, theirs = (errors(w, one, fmt, weight_K, power) for one in (found, usual))
    if fmt.scale_kind.outer == "row":  # one base a row: a group may lose what its row gains
        mine, theirs = mine.sum(1), theirs.sum(1)
    assert (mine <= theirs * (1 + 1e-5)).all()
    assert mine.sum() < theirs.sum() or fmt.bits == 8 or fmt.scale == "m2plus"


@pytest.mark.parametrize("text", ["e2m1:g16:sym:f32", "int4:g16:sym:f16", "int3:g16:asym:f32"])
def test_real_scales_are_the_best_of_all_shrinks(text):
    """Each group alone, with the formulas written out."""
    fmt, w = Format.parse(text), weights(6, 64)
    got = errors(w, scale_search.search(w, fmt), fmt).flatten()
    for group, found in zip(w.view(-1, 16), got):
        best = float("inf")
        for step in range(80):
            share = 1 - step / 100
            if fmt.symmetric:
                scale, zero = (group.abs().max() * share / fmt.max).to(fmt.scale_dtype).double(), 0
                value = elements.nearest((group.double() / scale).float(), fmt).double() * scale
            else:
                low, high = group.min().clamp(max=0).double() * share, group.max().clamp(min=0).double() * share
                scale = (high - low) / 7
                zero = torch.round(-low / scale).clamp(0, 7)
                value = (torch.round(group.double() / scale + zero).clamp(0, 7) - zero) * scale
            best = min(best, float(((value - group.double()) ** 2).sum()))
        assert found == pytest.approx(best, rel=1e-4)


def test_e4m3_near_is_all():
    """No scale outside of an eighth to twice the usual one is better: all 126, by brute force, change nothing."""
    fmt, w = Format.parse("nvfp4"), weights(32, 64)
    near, every = (scale_search.search(w, fmt, every=option) for option in (False, True))
    assert torch.equal(errors(w, near, fmt), errors(w, every, fmt))
    codes = torch.arange(1, 127, dtype=torch.uint8)
    tried = torch.stack([errors(w, Scales(code.expand(32, 4).contiguous().view(torch.float8_e4m3fn), outer=near.outer),
                                fmt) for code in codes])  # fmt: skip
    assert torch.equal(errors(w, every, fmt), tried.amin(0))


@pytest.mark.parametrize("element", ["e2m1", "e3m0", "int4", "int3", "e4m3"])
def test_no_scale_of_twice_s_is_better(element):
    """What the ranges of the search rest on: half of such a scale is never worse."""
    fmt, w = Format(element, "group", 16, scale="f32"), weights(16, 64)
    real = scales.real(groups.group_amax(w, fmt), fmt)
    for factor in (2.0, 2.3, 3.1, 4.0, 7.9):
        large, half = (errors(w, Scales(real * share), fmt) for share in (factor, factor / 2))
        assert (half <= large * (1 + 1e-5)).all()


@pytest.mark.parametrize("text", ["mxfp4", "mxfp8", "e2m1:g16:sym:m1", "int4:g16:sym:e8m0", "e2m1:g32:sym:e8m0-ceil"])
def test_exponents_are_the_best_of_all(text):
    fmt, w = Format.parse(text), weights(16, 64)
    got = errors(w, scale_search.search(w, fmt), fmt)
    tried = torch.stack([errors(w, Scales(torch.full(got.shape, byte, dtype=torch.uint8)), fmt)
                         for byte in range(100, 140)])  # fmt: skip
    best = tried.amin(0)
    assert ((got <= best * (1 + 1e-6)) | (got <= tried.sort(0)[0][1])).all() and (got == best).float().mean() > 0.95


def test_zeros_and_small_groups_stay():
    for text in ("int4:g16:asym", "e2m1:g16:sym:f16", "nvfp4", "mxfp4", "int8:channel:sym", "e2m1:g16:sym:m2"):
        fmt, w = Format.parse(text), weights(4, 64)
        w[1], w[2, 16:32] = 0, 0
        values = codec.fake_quantize(w, fmt, scale_search.search(w, fmt))
        assert torch.isfinite(values).all() and (values[1] == 0).all() and (values[2, 16:32] == 0).all()
    # the candidates of f16 scales near its least number become 0, and are passed over
    fmt = Format.parse("e2m1:g16:sym:f16")
    w = weights(4, 64) * 2.0**-22
    found = scale_search.search(w, fmt)
    assert (found.scale > 0).all() and (errors(w, found, fmt) <= errors(w, codec.choose(w, fmt), fmt)).all()
    with pytest.raises(NumericsError, match="too small for f16"):
        scale_search.search(w * 2.0**-10, fmt)


def test_rows_at_a_time_are_all_rows(monkeypatch):
    w = weights()
    for text in ("int4:g16:asym", "nvfp4", "e2m1:b4x16:sym", "e2m1:channel:sym"):
        fmt = Format.parse(text)
        whole = scale_search.search(w, fmt)
        monkeypatch.setattr(groups, "_CPU_AT_ONCE", 1)
        alone = scale_search.search(w, fmt)
        monkeypatch.undo()
        assert torch.equal(codec.fake_quantize(w, fmt, whole), codec.fake_quantize(w, fmt, alone))


@pytest.mark.parametrize("text", FORMATS)
def test_the_error_is_that_of_the_codec(text):
    fmt, w, weight_K = Format.parse(text), weights(), torch.rand(70)
    found = codec.choose(w, fmt)
    for power in (2.0, 2.4):
        want = float(errors(w, found, fmt, weight_K, power).sum())
        assert weight_error(w, found, fmt, weight_K=weight_K, power=power) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", ["e2m1", "e3m0", "e4m3", "e5m2"])
def test_nearest_is_encode_and_decode(name):
    grid = Format(name, "channel").grid
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    for x in (every, torch.nextafter(every, torch.tensor(float("inf"))), torch.randn(4096) * 3):
        finite = x[~torch.isnan(x)]
        want = grids.decode(grids.encode(finite, grid), grid)
        assert torch.equal(grids.nearest(finite, grid).view(torch.int32), want.view(torch.int32))
    assert torch.isnan(grids.nearest(torch.tensor([float("nan")]), grid)).all()
