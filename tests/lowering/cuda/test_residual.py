"""A residual added in the kernel of a linear: the bits of linear, then add; and which sums of a program are joined."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import qpass
from qpass.formats import Format
from qpass.lowering.cuda import target, tiles, weights
from qpass.lowering.cuda.kernels import grouped, integers, load
from qpass.lowering.cuda.weights import ONE_GROUP
from qpass.numerics import codec
from tests.lowering.cuda import fakegpu
from tests.lowering.cuda.generated import launches
from tests.lowering.cuda.test_codegen import mlp
from tests.lowering.cuda.test_linears import SHAPES, counters, four_bit, generator, inputs, ops, packed

load()
HALF = torch.float16  # the interpreter cuts a bfloat16 off, and rounds a float16


def linear(kind: str, m: int, n: int, k: int, bias: Tensor | None, branch: bool) -> Callable[..., Tensor]:
    """One call of an operator on random operands, to be given a residual."""
    count, second = counters(n), ()
    if branch:
        made = generator(k)
        second = (torch.randn(m, 8, generator=made).half(), torch.randint(-99, 99, (n, 8), dtype=torch.int8,
                  generator=made), torch.rand(n, generator=made))  # fmt: skip
    if kind == "w4a16":
        parts, last = packed(*four_bit(n, k, "int4:g64:asym"), "bf16")
        x = torch.randn(m, k, generator=generator(m)).half()
        args = (x, *parts, bias, count, n, *last)
    elif kind == "w4a8_int8":
        codes, found, fmt = four_bit(n, k, "int4:g128:sym")
        parts, last = packed(codes, found, fmt, integers(fmt))
        sums, (x, scale, _) = weights.scaled_sums(codes, found.scale, None, fmt), inputs(m, k, "int8:token:sym")
        args = (x, scale, None, *parts, sums, bias, count, n, *last, HALF)
    elif kind == "w4a8_fp8":
        codes, found, fmt = four_bit(n, k, "e2m1:g64:sym:f16")
        lay, (x, scale, _) = grouped(fmt, "lut"), inputs(m, k, "e4m3:token:sym")
        args = (x, scale, weights.pack_signs(codes, lay.layout), weights.real_table(fmt),
                lay.spread(found.scale, n, k), torch.ones(256), bias, count, n, lay.group or ONE_GROUP,
                str(lay.layout), HALF)  # fmt: skip
    elif kind == "int8":
        w = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator(n))
        x, scale, _ = inputs(m, k, "int8:token:sym")
        args = (x, scale, None, w, torch.rand(n, generator=generator(k)) / 1e4, weights.row_sums(w), bias, count, HALF)
    elif kind == "fp8":
        w = torch.randn(n, k, generator=generator(n)).to(torch.float8_e4m3fn)
        x, scale, _ = inputs(m, k, "e4m3:token:sym")
        args = (x, scale, w, torch.rand(n, generator=generator(k)), bias, count, HALF)
    else:
        k, fmt = max(k, 128), Format.parse("fp8-block")
        w = torch.randn(n, k, generator=generator(n))
        found = codec.choose(w, fmt)
        x, scale, _ = codec.quantize_rows(torch.randn(m, k, generator=generator(m)), Format.parse("fp8-group"))
        args = (x, scale, codec.quantize(w, found, fmt), found.scale, bias, count, HALF)
    return lambda added=None: getattr(ops, f"{kind}_linear")(
        *args, *second, **({} if added is None else {"residual": added})
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["w4a16", "w4a8_int8", "w4a8_fp8", "int8", "fp8", "fp8_block"])
def test_the_bits_of_linear_then_add(kind: str, shape: tuple[int, int, int]) -> None:
    """Ragged shapes, with split K and without, with and without a bias and a low-rank branch, rows that lie apart."""
    m, n, k = shape
    rows = torch.randn(m, 2 * n, generator=generator(k, n)).half()
    for with_bias, branch in ((False, False), (True, kind.startswith("w4"))):
        bias = torch.randn(n, generator=generator(n)) if with_bias else None
        call = linear(kind, m, n, k, bias, branch)
        plain = call()
        assert plain.dtype is HALF
        for added in (rows[:, :n].contiguous(), rows[:, n:], rows.t().contiguous().t()[:, :n]):
            assert torch.equal(call(added), plain + added)


class Block(nn.Module):
    """Sums of each kind: through a view, with what was computed before, and two that stay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(128, 128) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = x + self.a(x.flatten(0, 1)).view(x.shape)
        second = self.b(first) + self.c(first.relu())  # one of them is the other's residual
        twice = self.d(second)
        return twice + first, twice


def lowered(scheme: str, monkeypatch: pytest.MonkeyPatch | None = None) -> qpass.Program:
    """The program; with ``monkeypatch`` without the pass."""
    if monkeypatch is not None:
        monkeypatch.setattr(target, "join_residuals", lambda graph: None)
    model = Block().eval().to(HALF)
    return qpass.trace(model, scheme, args=(torch.zeros(2, 3, 128, dtype=HALF),), target="cuda")["LOWERED"]


@pytest.mark.parametrize("scheme", ["w8a8-int8", "w4a16-g128"])
def test_sums_of_a_program(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joined, apart = lowered(scheme), lowered(scheme, monkeypatch)
    adds = [[node for node in program.graph.nodes if str(node.target) == "aten.add.Tensor"]
            for program in (joined, apart)]  # fmt: skip
    linears = [node for node in joined.graph.nodes if str(node.target).removesuffix(".default").endswith("_linear")]
    full = [node for node in linears if len(node.args) == len(node.target._schema.arguments)]
    assert len(linears) == 4 and len(full) == len(adds[1]) - len(adds[0]) == 2
    x = torch.randn(2, 3, 128, generator=generator(5)).half()
    for left, right in zip(joined.run(x), apart.run(x)):
        assert torch.equal(left, right)


def test_float32_and_other_shapes_stay() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(128, 128)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + y

    for dtype, shape in ((torch.float32, (4, 128)), (HALF, (1, 128)), (HALF, (4, 1))):
        args = (torch.zeros(4, 128, dtype=dtype), torch.zeros(shape, dtype=dtype))
        program = qpass.trace(Odd().eval().to(dtype), "w8a8-int8", args=args, target="cuda")["LOWERED"]
        assert "aten.add.Tensor" in [str(node.target) for node in program.graph.nodes]


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w8a8-fp8"])
def test_the_next_norm_reads_the_sum(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many kernels as without the pass; the last norm has one tensor of rows to read, and writes no sum."""
    found = []
    for patch in (None, monkeypatch):
        if patch is not None:
            patch.setattr(target, "join_residuals", lambda graph: None)
        args = (torch.zeros(4, 256, dtype=torch.bfloat16),)
        program = qpass.trace(mlp(), scheme, args=args, target="cuda")["LOWERED"]
        found.append(fakegpu.code_of_bucket(program, tiles.FEW))
    assert len(launches(found[0])) == len(launches(found[1]))
    # sum, weight and result; without the pass the residual as well
    assert [operands(code, launches(code)[-1]) for code in found] == [3, 4]


def operands(code: str, name: str) -> int:
    """Tensors that a kernel of Inductor's is launched with."""
    (found,) = re.findall(rf"{name}\.run\(([^)]*)\)", code[code.index("    def call(") :])
    return len(re.findall(r"\b(?:buf|arg)\d+", found))


@pytest.mark.parametrize("bucket", [tiles.DENSE, None])
def test_many_rows_are_left_to_inductor(bucket: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the dot is Inductor's template the code is what it is without the pass."""
    args, found = (torch.zeros(4, 256, dtype=torch.bfloat16),), []
    for patch in (None, monkeypatch):
        if patch is not None:
            patch.setattr(target, "join_residuals", lambda graph: None)
        program = qpass.trace(mlp(), "w8a8-fp8", args=args, target="cuda")["LOWERED"]
        found.append(launches(fakegpu.code_of_bucket(program, bucket)))
    assert found[0] == found[1]
