"""What the compiler makes of each kernel, for GPUs that are not here: the regression test of speed without a device."""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from qpass.errors import UnsupportedError
from qpass.formats import Scheme
from qpass.lowering import Case
from qpass.lowering.cuda import candidates, tiles
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kernels import compiles_bf16, kernels, load
from qpass.lowering.triton.compile_only import compile_for
from qpass.lowering.triton.dequantize import dequantize_bf16_kernel, dequantize_fp8_kernel
from qpass.lowering.triton.eight_bit import eight_bit_kernel
from qpass.lowering.triton.properties import loop_of, properties
from qpass.lowering.triton.tile import to_rows
from tests.bench import gpu_tiles
from tests.lowering.triton.built import TYPES, built, most

WGMMA = "wgmma.mma_async.sync.aligned.m64n{n}k{k}.{kinds}"
MMA = "mma.sync.aligned.m16n8k{k}.row.col.{kinds}"
BF16, INT8, FP8 = "f32.bf16.bf16", "s32.s8.s8", "f32.e4m3.e4m3"
SHARED = 232448  # bytes that a program may have on an H100 or H200

# kernel, options, matrix instruction, instructions for each weight of 16 rows, registers
HOPPER = [
    ("w4a16", {}, BF16, 2.6, 168),
    ("w4a16", {"group": 0}, BF16, 2.6, 128),
    ("w4a16", {"group": 64}, BF16, 2.6, 232),
    ("w4a16", {"group": 32}, BF16, 3.5, 168),
    ("w4a8_int8", {}, INT8, 1.9, 168),
    ("w4a8_int8", {"group": 0}, INT8, 1.4, 168),
    ("w4a8_int8", {"group": 64}, INT8, 2.3, 168),
    ("w4a8_int8", {"group": 32}, INT8, 3.3, 168),
    ("w4a8_int8", {"signed": True}, INT8, 1.3, 168),
    ("w4a8_int8", {"group": 64, "signed": True}, INT8, 1.7, 168),
    ("w4a8_fp8", {}, FP8, 1.9, 128),
    ("w4a8_fp8", {"real": True}, FP8, 1.9, 128),
    ("int8", {}, INT8, 1.4, 64),
    ("fp8", {}, FP8, 1.4, 64),
    ("fp8_block", {}, FP8, 1.55, 80),
]
IDS = [name + "".join(f"-{key}{value}" for key, value in options.items()) for name, options, *_ in HOPPER]


@pytest.mark.parametrize(("name", "options", "kinds", "budget", "registers"), HOPPER, ids=IDS)
def test_few_rows_on_sm_90(name: str, options: dict, kinds: str, budget: float, registers: int) -> None:
    kernel, weights = built(name, 16, **options)
    found = properties(kernel)
    deep = 16 if kinds == BF16 else 32
    assert found.matrix == {WGMMA.format(n=16, k=deep, kinds=kinds)}  # no fall-back to TF32, float16 or mma.sync
    assert loop_of(kernel.ttgir) and found.conversions == found.allocations == 0
    unpacked, direct = found.words
    assert unpacked == direct == (weights // 8 // (32 * kernel.warps) if name.startswith("w4") else 0)
    assert found.copies["0x10"] >= 6  # weights, and inputs, by 16 bytes
    assert kernel.shared <= SHARED
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0) and kernel.registers <= registers
        case = name + "".join(f"-{key}{value}" for key, value in options.items())
        assert found.per_weight(weights, kernel) <= most(case, budget)


MORE = [("w4a16", 64, 128), ("w4a16", None, 64), ("w4a8_int8", None, 32), ("fp8_block", 64, 128),
        *((name, None, 128) for name in ("w4a16", "w4a8_int8", "w4a8_fp8", "int8", "fp8_block"))]  # fmt: skip


@pytest.mark.parametrize(("name", "bucket", "group"), MORE, ids=str)
def test_more_rows_on_sm_90(name: str, bucket: int | None, group: int) -> None:
    kernel, _ = built(name, bucket, group=group)
    found = properties(kernel)
    kinds = {"w4a16": BF16, "w4a8_int8": INT8, "int8": INT8}.get(name, FP8)
    columns = bucket or (128 if group == 128 else 64)
    assert found.matrix == {WGMMA.format(n=columns, k=16 if kinds == BF16 else 32, kinds=kinds)}
    assert found.conversions == 0 and found.words[0] == found.words[1]
    assert kernel.shared <= SHARED
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)


@pytest.mark.parametrize("bucket", [16, None], ids=["few", "many"])
@pytest.mark.parametrize(("name", "budget"), [("w4a16", 2.5), ("w4a8_int8", 1.9), ("int8", 1.2)])
def test_sm_80(name: str, budget: float, bucket: int | None) -> None:
    kernel, weights = built(name, bucket, "sm_80")
    found = properties(kernel)
    kinds = f"{BF16}.f32" if name == "w4a16" else f"satfinite.{INT8}.s32"
    assert found.matrix == {MMA.format(k=16 if name == "w4a16" else 32, kinds=kinds)}
    assert found.conversions == 0 and found.words[0] == found.words[1]
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)
        assert bucket is None or found.per_weight(weights, kernel) <= most(f"{name} sm_80", budget)


CANDIDATES = [("sm_90", "w4a8_int8", "few"), ("sm_80", "w4a16", "some"), ("sm_90", "int8", "few"),
              ("sm_90", "integer_linear", "some"), ("sm_90", "fp8", "some"), ("sm_90", "fp8_block", "few")]


@pytest.mark.parametrize(("target", "kind", "rows"), CANDIDATES, ids=str)
def test_candidates_are_what_the_list_says(target: str, kind: str, rows: str) -> None:
    """The last one of a list, compiled again; ``tests.bench.gpu_tiles`` compiles them all."""
    tile = tiles.Tile(*candidates.TILES[target, kind, rows][-1])
    assert gpu_tiles.cost(kind, rows, target, tile) is not None


SECOND = [("w4a16", BF16, 16), ("w4a8_int8", INT8, 16), ("w4a8_fp8", FP8, 64)]


@pytest.mark.parametrize(("name", "kinds", "bucket"), SECOND)
def test_a_second_dot(name: str, kinds: str, bucket: int) -> None:
    """A low-rank branch is a bfloat16 dot behind the loop, which stays as it is."""
    kernel, weights = built(name, bucket, rank=32)
    plain, _ = built(name, bucket)
    found, before = properties(kernel), properties(plain)
    shape = {"n": bucket, "k": 16 if kinds == BF16 else 32, "kinds": kinds}
    assert found.matrix == {WGMMA.format(**shape), WGMMA.format(n=bucket, k=16, kinds=BF16)}
    assert found.conversions == 0 and kernel.shared <= SHARED
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)
        assert found.per_weight(weights, kernel) <= before.per_weight(weights, plain) + 0.1


RESIDUAL = [("w4a16", 16), ("w4a8_int8", 16), ("w4a8_fp8", 64), ("int8", 16), ("fp8_block", None)]


@pytest.mark.parametrize(("name", "bucket"), RESIDUAL)
def test_a_residual(name: str, bucket: int | None) -> None:
    """It is behind the loop, which stays as it is; the result is rounded before it."""
    kernel, weights = built(name, bucket, residual=True)
    plain, _ = built(name, bucket)
    found, before = properties(kernel), properties(plain)
    assert found.matrix == before.matrix and found.conversions == 0 and kernel.shared <= SHARED
    added = [len(re.findall(r"\badd(?:\.rn)?\.bf16x2", made.assembly)) for made in (kernel, plain)]
    assert added[0] > added[1] == 0  # a sum of two bfloat16, which the result is by then
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)
        more = most(f"{name} residual", 0.1)
        assert found.per_weight(weights, kernel) <= before.per_weight(weights, plain) + more


GROUPS_SM_80 = [("w4a16", 0, 2.2), ("w4a16", 64, 2.6), ("w4a16", 32, 3.3), ("w4a8_int8", 64, 2.2)]


@pytest.mark.parametrize(("name", "group", "budget"), GROUPS_SM_80)
def test_groups_on_sm_80(name: str, group: int, budget: float) -> None:
    kernel, weights = built(name, 16, "sm_80", group=group)
    found = properties(kernel)
    assert found.conversions == 0 and found.words[0] == found.words[1] and found.words[0]
    if kernel.sass:
        assert found.spills == 0 and found.per_weight(weights, kernel) <= budget


@triton.jit
def bytes_kernel(x, packed, out):
    """A bfloat16 dot of bytes, two neighbors in a register: the order of sm_90; sm_80 has four of what was a byte."""
    spots = tl.arange(0, 256)[:, None]
    codes = to_rows(tl.load(packed + spots * 16 + tl.arange(0, 16)[None, :]), 64, 128, 2, 2)
    low, high = tl.inline_asm_elementwise(
        "{ .reg .b32 t4; shr.u32 t4, $4, 4; mov.b32 $0, t4; mov.b32 $1, t4; mov.b32 $2, $4; mov.b32 $3, $4; }",
        "=&r,=&r,=&r,=&r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
    )  # fmt: skip
    inputs = tl.load(x + tl.arange(0, 16)[None, :] * 64 + tl.arange(0, 64)[:, None])
    total = tl.dot(high, inputs, tl.dot(low, inputs))
    tl.store(out + tl.arange(0, 64)[:, None] * 16 + tl.arange(0, 16)[None, :], total.to(tl.bfloat16))


@pytest.mark.parametrize(("target", "whole"), [("sm_90", True), ("sm_80", False)])
def test_another_order_of_registers_is_seen(target: str, whole: bool) -> None:
    """A packing that does not fit the registers leaves no word straight from a load."""
    unpacked, direct = properties(compile_for(bytes_kernel, {**TYPES, "x": "*bf16"}, {}, target)).words
    assert unpacked == 8 and direct == (8 if whole else 0)


GFX942 = Capability.parse("gfx942")
AMD = {"w4a16": "v_mfma_f32_16x16x16_bf16", "w4a8_int8": "v_mfma_i32_16x16x32_i8", "int8": "v_mfma_i32_16x16x32_i8"}


@pytest.mark.parametrize("name", AMD)
def test_gfx942_compiles(name: str) -> None:
    """Every kernel that the target ``rocm`` picks."""
    if name == "w4a16" and not compiles_bf16(GFX942):
        pytest.skip(str(kernels(GFX942)[3].refuses(Case(64, 128, Scheme.parse("w4a16-g128"), torch.bfloat16))))
    kernel, _ = built(name, 16, "gfx942")
    assert {found.removesuffix("_1k") for found in properties(kernel).matrix} == {AMD[name]}
    spilled = re.findall(r"vgpr_spill_count:\s+(\d+)", kernel.assembly)
    assert kernel.shared <= 65536 and all(int(count) <= 16 for count in spilled)  # 0 with Triton 3.7, 16 with 3.6


def test_weights_are_written_out_in_wide_stores() -> None:
    constants = {"GROUP": 128, "BN": 64, "BK": 128, "ASM": True}
    types = {**TYPES, "choice": "*u8"}
    bf16 = compile_for(dequantize_bf16_kernel, {**types, "packed": "*i16"}, {**constants, "SCALE": "bf16"}, ragged=())
    fp8 = compile_for(dequantize_fp8_kernel, {**types, "out": "*fp8e4nv"}, constants, ragged=())
    for kernel in (bf16, fp8):
        assert "ld.global.L1::evict_first.L2::cache_hint.v4.b32" in kernel.assembly or ".v4.b32" in kernel.assembly
        assert kernel.stack <= 0


def test_a_target_that_cannot_is_refused() -> None:
    types = {**TYPES, "x": "*fp8e4nv", "weight": "*fp8e4nv", "scale": "*fp32"}
    constants = {"INTEGER": False, "ZERO": False, "SPLITS": 1, "HAS_BIAS": False, "HAS_RESIDUAL": False, "EVEN_K": True,
                 "BM": 16, "BN": 64, "BK": 128, "STAGES": 3}  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"does not compile eight_bit_kernel for sm_80.*fp8e4nv"):
        compile_for(eight_bit_kernel, types, constants, "sm_80")


def test_the_interpreter_leaves_the_compiler_as_it_was(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    codes, one = torch.ones(16, 32, dtype=torch.int8), torch.ones(16)
    load()
    out = torch.ops.qpass_cuda.int8_linear(codes, one[:, None], None, codes, one, one.int(), None, one.int(), one.dtype)
    assert torch.equal(out, torch.full((16, 16), 32.0))
    constants = {"GROUP": 128, "SCALE": "bf16", "BN": 64, "BK": 128, "ASM": True}
    assert compile_for(dequantize_bf16_kernel, {**TYPES, "packed": "*i16"}, constants, ragged=()).assembly
