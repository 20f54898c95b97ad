"""The C++ operators against float64 and integer oracles, on every instruction set that this machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from qpass.errors import InputError, UnsupportedError
from qpass.lowering.cpu import build, kernels

REASON = build.available()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 17, 33, 128]
SHAPES = [(32, 64), (256, 704), (33, 37), (70, 130), (5, 3), (96, 2048)]  # N, K
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ops = torch.ops.qpass_cpu


@pytest.fixture(params=["avx512", "avx512_bf16", "amx"])
def isa(request):
    kernels.load()
    level = {name: number for number, name in kernels.ISA_LEVELS.items()}[request.param]
    try:
        before = ops.set_isa(level)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    ops.set_isa(before)


def close(out: Tensor, exact: Tensor, error: Tensor, dtype: torch.dtype) -> None:
    """|out - exact| is within the error of the float32 result plus one rounding to dtype."""
    assert out.dtype == dtype and out.shape == exact.shape
    bound = error + UNIT[dtype] * (exact.abs() + error) + 2.0**-25
    worst = ((out.double() - exact).abs() - bound).max().item() if out.numel() else -1.0
    assert worst <= 0, f"{worst} above the bound"


class Int8Case:
    def __init__(self, m: int, n: int, k: int, bias: bool = True, low: int = -128) -> None:
        self.n = n
        self.codes = torch.randint(low, 128, (n, k), dtype=torch.int8)
        self.packed, self.sums = kernels.pack_int8(self.codes)
        self.x = torch.randint(0, 256, (m, k), dtype=torch.uint8)
        self.x_scale, self.zero = torch.rand(m, 1) + 0.01, torch.randint(0, 256, (m, 1), dtype=torch.int32)
        self.scale = (torch.rand(n) + 0.01) / k
        self.bias = torch.randn(n) if bias else None

    def integers(self) -> Tensor:
        return (self.x.long() - self.zero) @ self.codes.long().t()

    def run(self, dtype: torch.dtype, **other: Tensor | None) -> Tensor:
        a = {**vars(self), **other}
        return ops.int8_linear(
            a["x"], a["x_scale"], a["zero"], a["packed"], a["scale"], a["sums"], a["bias"], a["n"], dtype
        )


@needs_kernels
@pytest.mark.parametrize("n,k", SHAPES)
def test_int8_integer_part_is_exact(isa, n, k):
    for m in ROWS:
        case = Int8Case(m, n, k)
        got = case.run(torch.float32, x_scale=torch.ones(m, 1), scale=torch.ones(n), bias=None)
        assert torch.equal(got, case.integers().float())


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_int8_epilogue(isa, dtype, bias):
    for m in ROWS:
        for n, k in [(70, 130), (256, 704)]:
            case = Int8Case(m, n, k, bias)
            scaled = case.integers().double() * case.x_scale.double() * case.scale.double()
            exact = scaled + (case.bias.double() if bias else 0)
            close(case.run(dtype), exact, 2.0**-22 * scaled.abs() + 2.0**-24 * exact.abs(), dtype)


@needs_kernels
def test_int8_extreme_codes_do_not_saturate(isa):
    for m in (1, 3, 40):
        for code in (-128, 127):
            k, n = 65536, 33
            packed, sums = kernels.pack_int8(torch.full((n, k), code, dtype=torch.int8))
            x = torch.full((m, k), 255, dtype=torch.uint8)
            for zero in (0, 128, 255, -7):
                zeros = torch.full((m, 1), zero, dtype=torch.int32)
                if abs((255 - zero) * code * k) >= 2**31:
                    continue
                got = ops.int8_linear(x, torch.ones(m, 1), zeros, packed, torch.ones(n), sums, None, n, torch.float32)
                assert torch.equal(got, torch.full((m, n), float((255 - zero) * code * k)))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_row_does_not_depend_on_the_other_rows(isa, dtype):
    case = Int8Case(70, 96, 300)
    together = case.run(dtype)
    for i in range(70):
        alone = case.run(dtype, x=case.x[i : i + 1], x_scale=case.x_scale[i : i + 1], zero=case.zero[i : i + 1])
        assert torch.equal(alone[0], together[i])


@needs_kernels
def test_int8_batch_dimensions_and_strides(isa):
    case = Int8Case(12, 40, 72)
    flat = case.run(torch.float32)
    one = {"x_scale": case.x_scale.view(2, 3, 2, 1), "zero": case.zero.view(2, 3, 2, 1)}
    batch = case.run(torch.float32, x=case.x.view(2, 3, 2, 72), **one)
    assert batch.shape == (2, 3, 2, 40) and torch.equal(batch.view(12, 40), flat)
    single = case.run(torch.float32, x=case.x[0], x_scale=case.x_scale[0], zero=case.zero[0])
    assert torch.equal(single, flat[0])
    strided = torch.stack((case.x, case.x), 2)[:, :, 0]
    assert not strided.is_contiguous() and torch.equal(case.run(torch.float32, x=strided), flat)
    assert case.run(
        torch.bfloat16, x=case.x[:0].view(0, 4, 72), x_scale=torch.ones(0, 4, 1), zero=case.zero[:0].view(0, 4, 1)
    ).shape == (0, 4, 40)


def int4_oracle(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> tuple[Tensor, ...]:
    """Exact product, and the two sums that its error is a multiple of."""
    k = codes.shape[1]
    of_k = torch.arange(k) // group
    s = scale.double()[of_k]
    z = torch.full_like(s, 8) if zero is None else zero.double()[of_k]
    q, x = codes.double().t(), x.bfloat16().double()
    terms = ((q - 8).abs() + (8 - z).abs()) * s
    return x @ ((q - z) * s), x.abs() @ terms, x.abs() @ ((q - z) * s).abs()


def check_int4(m: int, n: int, k: int, group: int, zero: bool, dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    groups = -(-k // group)
    scale = ((torch.rand(groups, n) + 0.1) / k**0.5).bfloat16()
    zeros = torch.randint(0, 16, (groups, n), dtype=torch.uint8) if zero else None
    x, bias = torch.randn(m, k).to(x_dtype), torch.randn(n).to(dtype)
    out = ops.int4_linear(x, kernels.pack_int4(codes), scale, zeros, bias, n, group, dtype)
    exact, terms, products = int4_oracle(x, codes, scale, zeros, group)
    exact = exact + bias.double()
    tiles = group % 32 == 0 or groups == 1
    exact_rows = {"avx512": 16, "avx512_bf16": 32, "amx": 32 if tiles else 4}[kernels.isa()]
    rounded = m > exact_rows or (group % 8 != 0 and groups > 1)
    error = 2.0**-24 * (k + groups + 8) * terms + 2.0**-23 * exact.abs() + (2.0**-8 * products if rounded else 0)
    close(out, exact, error, dtype)


@needs_kernels
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("group", [2, 6, 8, 24, 32, 64, 128, 10000])
def test_int4_groups(isa, group, zero):
    for n, k, rows in [(256, 704, (1, 5, 13, 40)), (33, 37, (0, 2, 15, 33)), (70, 515, (3, 4, 6, 7, 8, 17, 32))]:
        for m in rows:
            check_int4(m, n, k, group, zero, torch.float32, torch.float32)


# Several passes over rows, several slabs and parts of k, a last block of channels that is partly padding, odd rows.
LARGE = [(257, 70, 2100), (161, 33, 6330), (1060, 32, 12300)]  # M, N, K


@needs_kernels
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("group", [24, 128, 100000])
@pytest.mark.parametrize("m,n,k", LARGE)
def test_int4_large(isa, m, n, k, group, zero):
    check_int4(m, n, k, group, zero, torch.bfloat16, torch.bfloat16)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
def test_int4_dtypes(isa, dtype, x_dtype):
    for m in (1, 4, 9, 40):
        check_int4(m, 64, 256, 128, True, dtype, x_dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n,k", SHAPES)
def test_int8_weight_only(isa, n, k, dtype):
    check_int8_weight(ROWS, n, k, dtype)


@needs_kernels
@pytest.mark.parametrize("m,n,k", LARGE)
def test_int8_weight_only_large(isa, m, n, k):
    check_int8_weight([m], n, k, torch.bfloat16)


@needs_kernels
@pytest.mark.parametrize("m,n,k", LARGE)
def test_int8_large(isa, m, n, k):
    case = Int8Case(m, n, k)
    got = case.run(torch.float32, x_scale=torch.ones(m, 1), scale=torch.ones(n), bias=None)
    assert torch.equal(got, case.integers().float())


def check_int8_weight(rows: list[int], n: int, k: int, dtype: torch.dtype) -> None:
    codes, scale, bias = torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n) / k, torch.randn(n)
    packed = kernels.pack_int8_weight(codes)
    for m in rows:
        x = torch.randn(m, k).to(dtype)
        exact = x.bfloat16().double() @ codes.double().t() * scale.double()
        terms = x.bfloat16().double().abs() @ codes.double().abs().t() * scale.double()
        out = ops.int8_weight_linear(x, packed, scale, bias, n, dtype)
        close(out, exact + bias.double(), 2.0**-24 * (k + 8) * terms + 2.0**-23 * bias.abs().double(), dtype)


@needs_kernels
def test_weight_only_batch_dimensions_and_strides(isa):
    codes = torch.randint(0, 16, (48, 64), dtype=torch.uint8)
    packed, scale = kernels.pack_int4(codes), torch.rand(2, 48).bfloat16()
    x = torch.randn(64, 10).t()
    flat = ops.int4_linear(x, packed, scale, None, None, 48, 32, torch.float32)
    batch = ops.int4_linear(x.reshape(5, 2, 64), packed, scale, None, None, 48, 32, torch.float32)
    assert torch.equal(batch.view(10, 48), flat)
    assert torch.equal(ops.int4_linear(x.contiguous(), packed, scale, None, None, 48, 32, torch.float32), flat)


@needs_kernels
def test_non_finite_activations_reach_the_output(isa):
    packed = kernels.pack_int4(torch.full((32, 64), 9, dtype=torch.uint8))
    for m in (1, 8, 40):
        x = torch.ones(m, 64)
        x[0, 5], x[-1, 63] = float("inf"), float("nan")
        out = ops.int4_linear(x, packed, torch.ones(1, 32).bfloat16(), None, None, 32, 64, torch.bfloat16)
        assert not out[0].isfinite().any() and out[-1].isnan().all() and (m < 3 or (out[1:-1] == 64).all())


@pytest.mark.parametrize("n,k", [*SHAPES, (1, 1), (64, 8), (8192, 256)])
def test_packing_is_inverted(n, k):
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed, sums = kernels.pack_int8(codes)
    assert torch.equal(kernels.unpack_int8(packed, n, k), codes) and torch.equal(sums, codes.int().sum(1).int())
    nibbles = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    packed4 = kernels.pack_int4(nibbles.t().contiguous().t())
    assert torch.equal(kernels.unpack_int4(packed4, n, k), nibbles)
    assert packed.is_contiguous() and packed4.is_contiguous()
    if n % 32 == 0 and k % 8 == 0:
        assert packed.numel() == n * k and packed4.numel() * 2 == n * k


def test_packing_refuses_wrong_codes():
    with pytest.raises(InputError, match=r"0\.\.15"):
        kernels.pack_int4(torch.full((2, 2), 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="int8"):
        kernels.pack_int8(torch.zeros(2, 2))


@needs_kernels
@pytest.mark.parametrize("m", [1, 6])
def test_opcheck(m):
    kernels.load()
    case = Int8Case(m, 40, 64)
    torch.library.opcheck(
        ops.int8_linear.default,
        (case.x, case.x_scale, case.zero, case.packed, case.scale, case.sums, case.bias, 40, torch.bfloat16),
    )
    x, packed = torch.randn(2, m, 64), kernels.pack_int4(torch.randint(0, 16, (40, 64), dtype=torch.uint8))
    zero = torch.randint(0, 16, (2, 40), dtype=torch.uint8)
    args = (x, packed, torch.rand(2, 40).bfloat16(), zero, None, 40, 32, torch.float16)
    torch.library.opcheck(ops.int4_linear.default, args)
    torch.library.opcheck(ops.int8_weight_linear.default, (x, case.packed, case.scale, None, 40, torch.float32))


@needs_kernels
def test_one_compiled_graph_serves_every_m():
    kernels.load()
    packed, scale = kernels.pack_int4(torch.randint(0, 16, (64, 128), dtype=torch.uint8)), torch.rand(4, 64).bfloat16()
    case = Int8Case(1, 64, 128)

    def model(x: Tensor, codes: Tensor, x_scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        args = (codes, x_scale, zero, case.packed, case.scale, case.sums, case.bias, 64, torch.float32)
        return (
            ops.int4_linear(x, packed, scale, None, case.bias, 64, 32, torch.float32),
            ops.int8_linear(*args),
            ops.int8_weight_linear(x, case.packed, case.scale, None, 64, torch.float32),
        )

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for m in (5, 7, 40):  # 2 would be taken for the number of packed blocks
        inputs = (
            torch.randn(m, 128),
            torch.randint(0, 256, (m, 128), dtype=torch.uint8),
            torch.rand(m, 1),
            torch.full((m, 1), 128, dtype=torch.int32),
        )
        assert all(torch.equal(a, b) for a, b in zip(compiled(*inputs), model(*inputs)))
    assert counter.frame_count == 1


@needs_kernels
@pytest.mark.parametrize(
    "change,message",
    [
        ({"x": torch.zeros(3, 64)}, "x_codes must have dtype Byte"),
        ({"x_scale": torch.ones(2, 1)}, r"x_scale must have shape \[3, 1\], got \[2, 1\]"),
        ({"packed": torch.zeros(1, 16, 32, 4, dtype=torch.int8)}, r"w_packed must have shape \[2, 16, 32, 4\]"),
        ({"bias": torch.zeros(39)}, r"bias must have shape \[40\]"),
        ({"sums": torch.zeros(40)}, "w_sum must have dtype Int"),
        ({"n": 0}, "out_features must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    kernels.load()
    with pytest.raises(RuntimeError, match=message):
        Int8Case(3, 40, 64).run(torch.float32, **change)


@needs_kernels
def test_wrong_group_size_and_dtype_are_named():
    kernels.load()
    x, packed = torch.randn(2, 64), kernels.pack_int4(torch.zeros(32, 64, dtype=torch.uint8))
    scale = torch.ones(2, 32).bfloat16()
    with pytest.raises(RuntimeError, match="group_size must be even"):
        ops.int4_linear(x, packed, scale, None, None, 32, 33, torch.float32)
    with pytest.raises(RuntimeError, match=r"w_scale must have shape \[4, 32\], got \[2, 32\]"):
        ops.int4_linear(x, packed, scale, None, None, 32, 16, torch.float32)
    with pytest.raises(RuntimeError, match="dtype must be float32, bfloat16 or float16"):
        ops.int4_linear(x, packed, scale, None, None, 32, 32, torch.int32)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float16"):
        ops.int4_linear(x.double(), packed, scale, None, None, 32, 32, torch.float32)


@needs_kernels
def test_environment_forces_an_instruction_set():
    kernels.load()
    code = "from qpass.lowering.cpu import kernels; print(kernels.isa())"
    env = {**os.environ, "QPASS_CPU_ISA": "avx512"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "avx512"


def test_unavailable_says_why(monkeypatch):
    monkeypatch.setattr(build, "cpu_flags", lambda: {"avx2", "fma"})
    assert "lacks avx512_vnni, avx512bw" in (build.available() or "")
    with pytest.raises(UnsupportedError, match="lacks avx512_vnni"):
        build.build()
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    assert "aarch64" in (build.available() or "")


def test_missing_and_failing_compilers_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "cpu_flags", lambda: build.CPU_FLAGS)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler' was not found" in (build.available() or "")
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'x.cpp: error: no such flag' >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("QPASS_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UnsupportedError, match=r"could not be compiled: x\.cpp: error.*g\+\+ 11"):
        build.build()
    assert not list((tmp_path / "cache" / "cpu").glob("*.so"))
