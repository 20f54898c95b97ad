"""The C++ operators of experts: what the operator of one linear gives for the rows of each, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpass.lowering.cpu import kernels

pytestmark = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
COUNTS = [((0, 3, 0, 40), 0), ((0, 0, 17), 0), ((1, 1, 1), 2), ((0, 0), 3), ((0, 0), 0)]
N, K = 70, 100


def setup_module() -> None:
    kernels.load()


def ends(counts: tuple[int, ...]) -> Tensor:
    return torch.tensor(counts).cumsum(0).int()


def check(out: Tensor, counts: tuple[int, ...], one) -> None:
    """``one(expert, rows)`` is the linear's result for rows of an expert."""
    start = 0
    for expert, count in enumerate(counts):
        part = slice(start, start + count)
        assert torch.equal(out[part], one(expert, part))
        start += count
    assert not out[start:].any()


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
def test_int8(counts: tuple[int, ...], tail: int) -> None:
    torch.manual_seed(0)
    rows, experts, op = sum(counts) + tail, len(counts), torch.ops.qpass_cpu
    x, scale = torch.randint(0, 256, (rows, K), dtype=torch.uint8), torch.rand(rows, 1)
    zero = torch.randint(0, 256, (rows, 1), dtype=torch.int32)
    packed, sums = zip(*(kernels.pack_int8(torch.randint(-127, 128, (N, K), dtype=torch.int8)) for _ in counts))
    w_scale, dtype = torch.rand(experts, N), torch.bfloat16
    args = x, scale, zero, torch.stack(packed), w_scale, torch.stack(sums), ends(counts), N, dtype
    check(op.grouped_int8_linear(*args), counts, lambda e, part: op.int8_linear(
        x[part], scale[part], zero[part], packed[e], w_scale[e], sums[e], None, N, dtype))  # fmt: skip
    weight_only = op.grouped_int8_weight_linear(x.float(), torch.stack(packed), w_scale, ends(counts), N, dtype)
    check(weight_only, counts, lambda e, part: op.int8_weight_linear(
        x[part].float(), packed[e], w_scale[e], None, N, dtype))  # fmt: skip


@pytest.mark.parametrize(("counts", "tail"), COUNTS, ids=str)
@pytest.mark.parametrize("group", [32, K])
def test_int4(counts: tuple[int, ...], tail: int, group: int) -> None:
    torch.manual_seed(0)
    rows, experts, op = sum(counts) + tail, len(counts), torch.ops.qpass_cpu
    x, groups = torch.randn(rows, K), -(-K // group)
    packed = [kernels.pack_int4(torch.randint(0, 16, (N, K), dtype=torch.uint8)) for _ in counts]
    scale = torch.rand(experts, groups, N).bfloat16()
    zero = torch.randint(0, 16, (experts, groups, N), dtype=torch.uint8)
    out = op.grouped_int4_linear(x, torch.stack(packed), scale, zero, ends(counts), N, group, torch.float32)
    check(out, counts, lambda e, part: op.int4_linear(
        x[part], packed[e], scale[e], zero[e], None, N, group, torch.float32))  # fmt: skip


@pytest.mark.parametrize("offsets", [[2, 1], [-1, 1], [1, 9]], ids=str)
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    packed = kernels.pack_int8_weight(torch.ones(N, K, dtype=torch.int8)).repeat(2, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="offsets must rise from 0 to at most 3"):
        torch.ops.qpass_cpu.grouped_int8_weight_linear(
            torch.randn(3, K), packed, torch.ones(2, N), torch.tensor(offsets).int(), N, torch.float32
        )


def test_opcheck() -> None:
    packed = kernels.pack_int8_weight(torch.ones(N, K, dtype=torch.int8)).repeat(2, 1, 1, 1, 1)
    args = torch.randn(3, K), packed, torch.ones(2, N), torch.tensor([1, 3]).int(), N, torch.float32
    torch.library.opcheck(torch.ops.qpass_cpu.grouped_int8_weight_linear, args)
