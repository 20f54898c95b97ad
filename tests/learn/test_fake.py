"""The differentiable quantizers: golden facts, an oracle in float64, and equality with the codes that are folded."""

from __future__ import annotations

import pytest
import torch

from qpass.formats import Format
from qpass.learn.fake import clipped, ends, fake_input, fake_weight, folded
from qpass.numerics import codec

ROW = torch.tensor([[-1, -0.5, 0, 0.25, 0.7, 2]], dtype=torch.float64)
OPEN = torch.full((1, 1), 100.0, dtype=torch.float64)  # σ = 1


def gate(value: float) -> torch.Tensor:
    return torch.logit(torch.full((1, 1), value, dtype=torch.float64)) if value < 1 else OPEN


@pytest.mark.parametrize(
    ("text", "gamma", "h", "z", "want"),
    [
        ("int2:channel:asym", 1.0, 1.0, 1, [-1, 0, 0, 0, 1, 2]),
        ("int3:channel:asym", 1.0, 3 / 7, 2, [-6 / 7, -3 / 7, 0, 3 / 7, 6 / 7, 15 / 7]),
        ("int4:channel:asym", 1.0, 0.2, 5, [-1, -0.4, 0, 0.2, 0.6, 2]),
        ("int4:channel:asym", 0.5, 2 / 15, 8, [-16 / 15, -8 / 15, 0, 4 / 15, 10 / 15, 14 / 15]),
        ("int4:channel:sym", 1.0, 2 / 7, 0, [-8 / 7, -4 / 7, 0, 2 / 7, 4 / 7, 2]),
    ],
)
def test_g8_values(text, gamma, h, z, want):
    fmt = Format.parse(text)
    row = torch.where(ROW == 0.7, 0.69, ROW)  # 0.7 / 0.2 is a tie that floating point decides
    found_h, found_z = clipped(*ends(row, fmt), OPEN, gate(gamma), fmt)
    assert float(found_h) == pytest.approx(h, rel=1e-6) and int(found_z) == z
    torch.testing.assert_close(fake_weight(row, fmt, OPEN, gate(gamma))[0], torch.tensor(want, dtype=torch.float64))


def test_g8_at_the_start():
    fmt = Format.parse("int2:channel:asym")
    four = torch.full((1, 1), 4.0, dtype=torch.float64)
    h, z = clipped(*ends(ROW, fmt), four, four, fmt)
    assert float(h) == pytest.approx(0.9820138, rel=1e-6) and int(z) == 1
    codes = fake_weight(ROW, fmt, four, four) / h.view(1, 1) + 1
    assert codes.round().int().tolist() == [[0, 0, 1, 1, 2, 3]]


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.5, 0.75, 1.0], [0.3, 0.3, 0.3], [-0.3, -0.3, -0.3]])
def test_g9_rows_on_one_side_of_zero(row):
    fmt = Format.parse("int4:channel:asym")
    w = torch.tensor([row])
    h, z = clipped(*ends(w, fmt), None, None, fmt)
    assert 0 <= int(z) <= 15
    assert bool(((fake_weight(w, fmt) - w).abs() <= h.view(1, 1) / 2 + 1e-7).all())


@torch.enable_grad()
def test_g10_gradients():
    fmt = Format.parse("int3:channel:asym")
    beta, gamma = (torch.full((1, 1), 4.0, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = fake_weight(ROW, fmt, beta, gamma)
    torch.testing.assert_close(found[0], torch.tensor([-0.841726, -0.420863, 0, 0.420863, 0.841726, 2.104315]).double(),
                               rtol=1e-6, atol=1e-6)  # fmt: skip
    (found - ROW).square().sum().backward()
    assert float(gamma.grad) == pytest.approx(2.193728e-3, rel=1e-4)
    assert float(beta.grad) == pytest.approx(1.096864e-3, rel=1e-4)


def oracle(w, fmt, beta, gamma):
    """The formulas as written, group by group in float64, with detach for rounding."""
    parts = []
    for number, group in enumerate(w.split(fmt.group or w.shape[1], dim=1)):
        low, high = group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)
        at = slice(number, number + 1)
        low, high = torch.sigmoid(beta[:, at]) * low, torch.sigmoid(gamma[:, at]) * high
        if fmt.symmetric:
            h, z = torch.maximum(high, -low) / fmt.max, 0.0
        else:
            h = (high - low) / fmt.range[1]
            z = (-low / h).round().detach()
        a = group / h
        code = (a + (a.round() - a).detach() + z).clamp(*fmt.range)
        parts.append((code - z) * h)
    return torch.cat(parts, 1)


@torch.enable_grad()
@pytest.mark.parametrize("text", ["int4:channel:asym", "int3:g48:asym:f32", "int4:g64:sym:f32", "int2:g64:asym:f32",
                                  "int8:channel:sym"])  # fmt: skip
def test_gradients_against_float64(text):
    fmt = Format.parse(text)
    torch.manual_seed(1)
    w, weight = torch.randn(5, 200), torch.randn(5, 200)
    groups = fmt.groups(200)
    beta, gamma = torch.randn(5, groups) + 2, torch.randn(5, groups) + 2
    found = [value.clone().requires_grad_() for value in (w, beta, gamma)]
    (fake_weight(found[0], fmt, found[1], found[2]) * weight).sum().backward()
    want = [value.double().requires_grad_() for value in (w, beta, gamma)]
    (oracle(want[0], fmt, want[1], want[2]) * weight).sum().backward()
    for one, other in zip(found, want):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


FORMATS = ("int4:g128:asym", "int3:g48:asym", "int4:channel:sym", "int8:channel:asym", "int2:g64:asym", "int4:g32:sym",
           "e2m1:g32:sym:e8m0", "e4m3:channel:sym")  # fmt: skip


@pytest.mark.parametrize("text", FORMATS)
def test_codes_are_those_of_the_trained_quantizer(text):
    fmt = Format.parse(text)
    w = torch.randn(9, 200)
    beta, gamma = (torch.randn(9, fmt.groups(200)) + 2 for _ in range(2))
    found = folded(w, fmt, beta, gamma)
    assert torch.equal(codec.fake_quantize(w, fmt, found), fake_weight(w, fmt, beta, gamma))


@pytest.mark.parametrize("text", ["int4:token:asym", "int8:token:sym", "int6:token:asym", "e4m3:token:sym",
                                  "int8:g32:asym", "mxfp8"])  # fmt: skip
def test_inputs_are_what_the_codec_makes(text):
    fmt = Format.parse(text)
    x = torch.randn(3, 7, 96)
    x[0, 0] = 0
    x[0, 1] = x[0, 1].abs()
    assert torch.equal(fake_input(x, fmt), codec.dequantize_rows(*codec.quantize_rows(x, fmt), fmt, torch.float32))


def test_g11():
    fmt = Format.parse("int4:token:asym")
    found = fake_input(torch.tensor([[-1, 0, 0.5, 3]]), fmt)
    torch.testing.assert_close(found, torch.tensor([[-1.066667, 0, 0.533333, 2.933333]]))


@torch.enable_grad()
def test_gradients_of_inputs_flow_through_their_range():
    fmt = Format.parse("int4:token:asym")
    x = torch.tensor([[-1, 0, 0.5, 3.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    (fake_input(x, fmt) * weight).sum().backward()
    y = x.detach().double().requires_grad_()
    h = (y.amax() - y.amin()) / 15
    z = (-y.amin() / h).round().detach()
    a = y / h
    (((a + (a.round() - a).detach() + z).clamp(0, 15) - z) * h * weight).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-6)


def test_a_short_last_group_does_not_see_the_padding():
    fmt = Format.parse("int4:g64:asym")
    w = torch.rand(3, 100) + 1
    found = fake_weight(w, fmt)
    assert torch.equal(found[:, 64:], fake_weight(w[:, 64:], Format.parse("int4:g36:asym")))
