"""Low-rank branches (LoRC) as a second dot: the operators against float64, and what is joined in a program."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

import qpass
from qpass.lowering.cuda import weights
from qpass.lowering.cuda.kernels import grouped, integers, load
from qpass.lowering.cuda.weights import ONE_GROUP
from qpass.numerics import codec
from tests.lowering.cuda.test_linears import SYM, bound, counters, four_bit, generator, inputs, ops, packed, values

load()
M, N, K = 5, 40, 300


def branch(rank: int, int8: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """V x, U and the scales of U's rows."""
    made = generator(rank)
    x = torch.randn(M, rank, generator=made).bfloat16().float()
    if int8:
        return x, torch.randint(-127, 128, (N, rank), dtype=torch.int8, generator=made), torch.rand(N, generator=made)
    return x, torch.randn(rank, N, generator=made).bfloat16().float().t(), None  # not contiguous


@pytest.mark.parametrize(("rank", "int8"), [(1, True), (8, True), (40, False), (64, True)])
@pytest.mark.parametrize("kind", ["w4a16", "w4a8_int8", "w4a8_fp8"])
def test_second_dot(kind: str, rank: int, int8: bool) -> None:
    codes, found, fmt = four_bit(N, K, "e2m1:g64:sym:f16" if kind == "w4a8_fp8" else "int4:g64:sym")
    x, up, scale = branch(rank, int8)
    second = up.double() * (1 if scale is None else scale.double()[:, None])
    count, bias = counters(N), torch.randn(N, generator=generator(N))
    if kind == "w4a16":
        left = torch.randn(M, K, generator=generator(M)).bfloat16().float()
        parts, last = packed(codes, found, fmt, "bf16")
        out = ops.w4a16_linear(left, *parts, bias, count, N, *last, x, up, scale)
    else:
        left, s, _ = inputs(M, K, SYM if kind == "w4a8_int8" else "e4m3:token:sym")
        if kind == "w4a8_int8":
            parts, last = packed(codes, found, fmt, integers(fmt))
            sums = weights.scaled_sums(codes, found.scale, found.zero, fmt)
            out = ops.w4a8_int8_linear(left, s, None, *parts, sums, bias, count, N, *last, torch.float32, x, up, scale)
        else:
            lay = grouped(fmt, "lut")
            out = ops.w4a8_fp8_linear(
                left, s, weights.pack_signs(codes, lay.layout), weights.real_table(fmt),
                lay.spread(found.scale, N, K), torch.ones(128), bias, count, N, lay.group or ONE_GROUP,
                str(lay.layout), torch.float32, x, up, scale,
            )  # fmt: skip
        left = left.double() * s
    w = codec.dequantize(codes, found, fmt, torch.float32).double() if kind == "w4a8_fp8" else values(codes, found, fmt)
    exact = left.double() @ w.T + x.double() @ second.T + bias
    limit = bound(left.double(), w, 40) + bound(x.double(), second, 40) + 2.0**-21 * (exact.abs() + bias.abs())
    assert ((out - exact).abs() <= limit).all() and not count.any()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 96), nn.SiLU(), nn.Linear(96, 40)).eval()


FORMATS = {"int4:g128:asym:r8": "w4a16", "int4:g64:sym:r4-f16 x int8:token:asym": "w4a8_int8",
           "e2m1:g256:sym:m2:r8 x e4m3:token:sym": "w4a8_fp8"}  # fmt: skip


@pytest.mark.parametrize(("text", "kernel"), FORMATS.items())
def test_a_program_has_the_second_dot_in_its_kernel(text: str, kernel: str) -> None:
    recipe = {"linears": {"0.weight": text, "*": "keep"}}
    made = qpass.trace(model(), recipe, args=(torch.zeros(2, 256),), target="cuda")
    found, expected = made["LOWERED"], qpass.trace(model(), recipe, args=(torch.zeros(2, 256),), target="reference")
    names = [str(node.target) for node in found.graph.nodes if node.op == "call_function"]
    (linear,) = [node for node in found.graph.nodes if kernel in str(node.target)]
    assert len(linear.args) == len(linear.target._schema.arguments) - 1  # up to the scales of U
    assert not [name for name in names if "aten.add" in name or "low_rank_up" in name]
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    (left,), (right,) = found.run(x), expected["LOWERED"].run(x)
    assert (left - right).abs().max() <= 2.0**-24 * (256 + 48) * 32  # as in test_target
    if "f16" not in text:
        assert "cuda.low_rank_up" in str(made.plan) and "a second dot in the kernel of its linear" in str(made.plan)


def test_a_branch_that_something_else_reads_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.small = nn.Linear(256, 40), nn.Linear(8, 40, bias=False)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            second = self.small(y)
            return self.big(x) + second, second

    recipe = {"linears": {"big.weight": "w4a16-g32", "*": "keep"}}
    made = qpass.trace(Twice().eval(), recipe, args=(torch.zeros(2, 256), torch.zeros(2, 8)), target="cuda")["LOWERED"]
    assert "aten.add" in " ".join(str(node.target) for node in made.graph.nodes)
