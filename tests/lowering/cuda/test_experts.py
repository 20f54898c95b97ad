"""The operators of experts in Triton's interpreter, against float64 of the same codes, over ragged counts of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qpass.formats import Format
from qpass.lowering.cuda import weights
from qpass.lowering.cuda.experts import load
from qpass.lowering.cuda.kernels import grouped, integers
from qpass.lowering.triton.layout import padded_rows
from qpass.numerics import codec
from qpass.numerics.scales import Scales
from tests.lowering.cuda.test_linears import bound, four_bit, inputs, packed, values

load()
ops = torch.ops.qpass_cuda
# rows of each expert, and behind the last: empty ones, one that has all, more rows than a tile, a tail of zeros
COUNTS = [((0, 3, 0, 2), 0), ((0, 0, 5), 0), ((1, 1, 1, 1, 1), 0), ((130, 0, 17), 0), ((2, 0, 3), 4), ((0, 0), 3)]
N, K = 40, 300  # ragged against every tile and block


def ends(counts: tuple[int, ...]) -> Tensor:
    return torch.tensor(counts).cumsum(0).int()


def exact(x: Tensor, w: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Float64, expert by expert."""
    out, start = torch.zeros(len(x), w.shape[1], dtype=torch.float64), 0
    for expert, count in enumerate(counts):
        out[start : start + count] = x[start : start + count].double() @ w[expert].double().T
        start += count
    return out


def within(out: Tensor, x: Tensor, w: Tensor, counts: tuple[int, ...], size: Tensor) -> bool:
    """Whether float32 sums of products of that size explain the error; rows of no expert are exactly 0."""
    want, limit, start = exact(x, w, counts), torch.zeros(out.shape, dtype=torch.float64), 0
    for expert, count in enumerate(counts):
        limit[start : start + count] = bound(size[start : start + count].double(), w[expert], 40)
        start += count
    return bool(((out - want).abs() <= limit).all())


def moved(x: Tensor, zero: Tensor) -> tuple[Tensor, Tensor | None]:
    """Unsigned codes where int8 lives."""
    return (x, None) if x.dtype is torch.int8 else ((x.short() - 128).to(torch.int8), zero - 128)


def stack(experts: int, text: str, n: int = N) -> tuple[list[tuple[Tensor, Scales]], Format]:
    made = [four_bit(n + 0 * expert, K, text) for expert in range(experts)]
    found = [(codes.roll(expert, 0), scales) for expert, (codes, scales, _) in enumerate(made)]
    return found, made[0][2]


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
@pytest.mark.parametrize("inputs_format", ["int8:token:asym", "int8:token:sym"])
def test_int8(counts: tuple[int, ...], tail: int, inputs_format: str) -> None:
    rows, experts = sum(counts) + tail, len(counts)
    codes = torch.randint(-127, 128, (experts, N, K), dtype=torch.int8, generator=torch.Generator().manual_seed(rows))
    scale = torch.rand(experts, N) + 0.5
    x, x_scale, zero = inputs(rows, K, inputs_format)
    shifted, away = moved(x, zero)
    out = ops.grouped_int8_linear(
        shifted, x_scale, away, codes, scale, codes.sum(2, dtype=torch.int32), ends(counts), torch.float32
    )
    sums = exact(x.double() - zero, codes, counts).float()  # exact in int32, and in float32 but for its rounding
    start = 0
    for expert, count in enumerate(counts):
        part = slice(start, start + count)
        assert torch.equal(out[part], sums[part] * scale[expert] * x_scale[part])
        start += count
    assert not out[start:].any()


@pytest.mark.parametrize(("counts", "tail"), COUNTS[:4], ids=str)
def test_fp8(counts: tuple[int, ...], tail: int) -> None:
    rows, experts = sum(counts) + tail, len(counts)
    codes = torch.randn(experts, N, K, generator=torch.Generator().manual_seed(rows)).to(torch.float8_e4m3fn)
    scale = torch.rand(experts, N) + 0.5
    x, x_scale, _ = inputs(rows, K, "e4m3:token:sym")
    out = ops.grouped_fp8_linear(x, x_scale, codes, scale, ends(counts), torch.float32)
    real = x.double() * x_scale.double()
    assert within(out, real, codes.double() * scale.double()[:, :, None], counts, real)


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
def test_fp8_blocks(counts: tuple[int, ...], tail: int) -> None:
    """Each expert has scales of its own; two blocks of rows, and a block of K that is not full."""
    weight_format, input_format = Format.parse("fp8-block"), Format.parse("fp8-group")
    experts, n, made = len(counts), 256, torch.Generator().manual_seed(9)
    weight = torch.randn(experts * n, K, generator=made) * (torch.rand(experts * n, 1, generator=made) + 0.1)
    found = codec.choose(weight, weight_format)
    codes = codec.quantize(weight, found, weight_format)
    x, scale, zero = codec.quantize_rows(torch.randn(sum(counts) + tail, K, generator=made), input_format)
    out = ops.grouped_fp8_block_linear(x, scale, codes.view(experts, n, K), found.scale, ends(counts), torch.float32)
    left = codec.dequantize_rows(x, scale, zero, input_format, torch.float64)
    right = codec.dequantize(codes, found, weight_format, torch.float64).view(experts, n, K)
    assert within(out, left, right, counts, left)
    assert not out[sum(counts) :].any()


def test_fp8_blocks_are_of_one_expert() -> None:
    x = torch.zeros(2, 128).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="multiples of 128 rows"):
        ops.grouped_fp8_block_linear(x, torch.ones(2, 1), x.new_zeros(2, 64, 128), torch.ones(1, 1), ends((1, 1)),
                                     torch.float32)  # fmt: skip


def stacked(found: list, fmt: Format, order: str) -> tuple[tuple, tuple]:
    """What ``packed`` gives, of all experts."""
    each = [packed(codes, scales, fmt, order) for codes, scales in found]
    parts = [None if part[0] is None else torch.stack(part) for part in zip(*(one for one, _ in each))]
    return tuple(parts), each[0][1]


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
@pytest.mark.parametrize("text", ["int4:g128:asym", "int4:g64:asym", "int4:channel:sym"])
def test_w4a16(counts: tuple[int, ...], tail: int, text: str) -> None:
    found, fmt = stack(len(counts), text)
    x = torch.randn(sum(counts) + tail, K, generator=torch.Generator().manual_seed(7)).bfloat16().float()
    parts, kind = stacked(found, fmt, "bf16")
    out = ops.grouped_w4a16_linear(x, *parts, ends(counts), N, *kind)
    assert within(out, x, torch.stack([values(codes, scales, fmt) for codes, scales in found]), counts, x)


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
@pytest.mark.parametrize(("text", "inputs_format"), [
    ("int4:g128:asym", "int8:token:asym"), ("int4:g32:asym", "int8:token:sym"),
    ("int4:channel:asym", "int8:token:asym"),
])  # fmt: skip
def test_w4a8_int8(counts: tuple[int, ...], tail: int, text: str, inputs_format: str) -> None:
    found, fmt = stack(len(counts), text)
    x, x_scale, x_zero = inputs(sum(counts) + tail, K, inputs_format)
    shifted, away = moved(x, x_zero)
    parts, kind = stacked(found, fmt, integers(fmt))
    sums = torch.stack([weights.scaled_sums(codes, scales.scale, scales.zero, fmt) for codes, scales in found])
    out = ops.grouped_w4a8_int8_linear(
        shifted, x_scale, away, *parts, sums, ends(counts), N, *kind, torch.float32
    )
    w = torch.stack([values(codes, scales, fmt) for codes, scales in found])
    # the sums of groups and the zero point's term are of the size of the moved codes, and cancel
    size = (shifted.double().abs() + (0 if away is None else away.abs())) * x_scale.double()
    assert within(out, (x.double() - x_zero) * x_scale.double(), w, counts, size)


@pytest.mark.parametrize(("counts", "tail"), COUNTS[:2], ids=str)
@pytest.mark.parametrize("text", ["e2m1:g256:sym:m2", "e2m1:g64:sym:e8m0", "int4:g128:sym:m2plus", "int4:g64:sym:f16",
                                  "e3m0:channel:sym"])  # fmt: skip
def test_w4a8_fp8(counts: tuple[int, ...], tail: int, text: str) -> None:
    found, fmt = stack(len(counts), text)
    lay, real = grouped(fmt, "lut"), fmt.scale_kind.is_real
    x, x_scale, _ = inputs(sum(counts) + tail, K, "e4m3:token:sym")
    words = torch.stack([weights.pack_signs(codes, lay.layout) for codes, _ in found])
    tables = weights.real_table(fmt) if real else weights.tables(fmt)
    choice = torch.stack([lay.spread(scales.scale, N, K) if real else weights.choices(codes, scales, fmt, lay)
                          for codes, scales in found])  # fmt: skip
    factor = torch.stack([torch.full((padded_rows(N),), 1.0) if real else weights.factors(codes, scales, fmt)
                          for codes, scales in found])  # fmt: skip
    out = ops.grouped_w4a8_fp8_linear(
        x, x_scale, words, tables, choice, factor, ends(counts), N, lay.group or weights.ONE_GROUP, str(lay.layout),
        torch.float32,
    )  # fmt: skip
    real_x = x.double() * x_scale.double()
    w = torch.stack([codec.dequantize(codes, scales, fmt, torch.float32) for codes, scales in found])
    assert within(out, real_x, w.double(), counts, real_x)
    assert not out[sum(counts) :].any()
