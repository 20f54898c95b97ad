"""What the compiler makes of the kernels of experts, for GPUs that are not here: as good as those of one weight."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("triton")

from qpass.lowering.cuda import tiles
from qpass.lowering.triton.compile_only import Built, compile_for
from qpass.lowering.triton.experts import (
    grouped_eight_bit_kernel,
    grouped_fp8_block_kernel,
    grouped_w4a8_fp8_kernel,
    grouped_w4a8_int8_kernel,
    grouped_w4a16_kernel,
)
from qpass.lowering.triton.properties import loop_of, properties
from tests.lowering.triton.built import TYPES, _kind, most
from tests.lowering.triton.test_properties import BF16, FP8, INT8, MMA, SHARED, WGMMA

KERNELS = {"int8": grouped_eight_bit_kernel, "fp8": grouped_eight_bit_kernel, "w4a16": grouped_w4a16_kernel,
           "fp8_block": grouped_fp8_block_kernel, "w4a8_int8": grouped_w4a8_int8_kernel,
           "w4a8_fp8": grouped_w4a8_fp8_kernel}  # fmt: skip


@functools.cache
def built(name: str, bucket: int | None, target: str = "sm_90") -> tuple[Built, int]:
    """(the kernel with the tile of a bucket, for up to 255 experts; the weights of one round of its loop)."""
    _, table, types, constants = _kind(name, 128, False, False, target)
    kernel, tile = KERNELS[name], tiles.tile(table, bucket, warp_groups=target == "sm_90")
    constants |= {"EVEN_K": True, "BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages, "ET": 256}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    ragged = ("M", "E", "tiles_m", "groups")
    types = {**TYPES, "offsets": "*i32", **dict.fromkeys(ragged, "i32"), **types}
    made = compile_for(kernel, types, constants, target, warps=tile.warps, ragged=ragged)
    return made, tile.bn * constants.get("BK", 128)


# kernel, matrix instruction, instructions for each weight of 16 rows: the budgets of the kernels of one weight
HOPPER = [("w4a16", BF16, 2.6), ("w4a8_int8", INT8, 1.9), ("int8", INT8, 1.4), ("fp8", FP8, 1.4),
          ("fp8_block", FP8, 1.55), ("w4a8_fp8", FP8, 1.9)]  # fmt: skip


@pytest.mark.parametrize(("name", "kinds", "budget"), HOPPER)
def test_few_rows_on_sm_90(name: str, kinds: str, budget: float) -> None:
    kernel, weights = built(name, 16)
    found = properties(kernel)
    assert found.matrix == {WGMMA.format(n=16, k=16 if kinds == BF16 else 32, kinds=kinds)}
    assert loop_of(kernel.ttgir) and found.conversions == found.allocations == 0
    unpacked, direct = found.words
    assert unpacked == direct == (weights // 8 // (32 * kernel.warps) if name.startswith("w4") else 0)
    assert found.copies["0x10"] >= 6 and kernel.shared <= SHARED
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0) and kernel.registers <= 168
        assert found.per_weight(weights, kernel) <= most(name, budget)


MORE = [("w4a16", 64), ("int8", 64), ("fp8_block", 64),
        *((name, None) for name in ("w4a16", "w4a8_int8", "int8", "fp8_block", "w4a8_fp8"))]  # fmt: skip
KINDS = {"w4a16": BF16, "fp8_block": FP8, "w4a8_fp8": FP8}


@pytest.mark.parametrize(("name", "bucket"), MORE, ids=str)
def test_more_rows_on_sm_90(name: str, bucket: int | None) -> None:
    kernel, _ = built(name, bucket)
    found = properties(kernel)
    kinds = KINDS.get(name, INT8)
    assert found.matrix == {WGMMA.format(n=bucket or 128, k=16 if kinds == BF16 else 32, kinds=kinds)}
    assert found.conversions == 0 and found.words[0] == found.words[1] and kernel.shared <= SHARED
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)


@pytest.mark.parametrize(("name", "budget"), [("w4a16", 3.0), ("w4a8_int8", 1.9), ("int8", 1.3)])
def test_sm_80(name: str, budget: float) -> None:
    kernel, weights = built(name, 16, "sm_80")
    found = properties(kernel)
    kinds = f"{BF16}.f32" if name == "w4a16" else f"satfinite.{INT8}.s32"
    assert found.matrix == {MMA.format(k=16 if name == "w4a16" else 32, kinds=kinds)}
    assert found.conversions == 0 and found.words[0] == found.words[1]
    if kernel.sass:
        assert (kernel.stack, found.spills) == (0, 0)
        assert found.per_weight(weights, kernel) <= most(f"grouped {name} sm_80", budget)
