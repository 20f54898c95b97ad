"""What the compiler makes of the kernels of integer-only programs, for GPUs that are not here."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from qpass.lowering.cuda import integer_tiles, tiles
from qpass.lowering.triton.compile_only import Built, compile_for
from qpass.lowering.triton.integer_activation import integer_activation_halves_kernel, integer_activation_kernel
from qpass.lowering.triton.integer_attention import integer_attention_kernel
from qpass.lowering.triton.integer_attention_parts import (
    integer_attention_parts_kernel,
    integer_attention_peaks_kernel,
)
from qpass.lowering.triton.integer_heads import integer_heads_kernel, integer_merge_kernel
from qpass.lowering.triton.integer_linear import integer_linear_kernel
from qpass.lowering.triton.integer_norm import integer_norm_kernel
from qpass.lowering.triton.properties import properties
from tests.lowering.triton.built import most

CODES = {"CODES": True, "BITS": 8, "SYMMETRIC": False, "MANTISSA": 15}
NORM = {"ADD": True, "NORM": True, "CENTER": False, "WEIGHT": True, "BIAS": False, **CODES}
GATED = {"KIND": 1, "GATED": True, "EACH": False, **CODES}
HEADS = {"ROTARY": True, "CACHE": False, **CODES, "SYMMETRIC": True}
BYTES = ("codes", "weight", "q", "keys", "values", "keep")
NUMBER = re.compile(r"[MNKHTS]|HEADS|root_n|places|stride_\w+|eps_\w+|scale_\w+|(?:x|k|cos|sin|key|value|keep)_[bhts]")
WIDTH = re.compile(r"[NK]|stride_\w+|x_[bht]|cos_[bt]|sin_[bt]")
"""Numbers that a model's sizes make multiples of 16."""


def build(kernel, constants: dict, target: str, warps: int, **types: str) -> Built:
    """Tensors are int32 but for ``BYTES``; sizes and strides int32."""
    merge = ("x_m", "k_m") if kernel is integer_merge_kernel else ()
    numbers = [name for name in kernel.arg_names if NUMBER.fullmatch(name) or name in merge]
    signature = {name: "i32" if name in numbers else "*i8" if name in BYTES else "*i32" for name in kernel.arg_names}
    ragged = tuple(name for name in numbers if not WIDTH.fullmatch(name) and name != "x_m")
    return compile_for(kernel, {**signature, **types}, constants, target, warps=warps, ragged=ragged)


def no_float(built: Built) -> None:
    """Integers only, down to the instructions: PTX computes with no type of a float."""
    assert not re.findall(r"\b(?!mov|ld|st)\w+(?:\.\w+)*\.(?:f16|bf16|f32|f64|tf32)\b", built.assembly)


ROWS = [(integer_norm_kernel, NORM, {}, 4096, 80), (integer_activation_kernel, GATED, {}, 4096, 80),
        (integer_heads_kernel, HEADS, {"cos": "*i16", "sin": "*i16"}, 128, 64)]  # fmt: skip


@pytest.mark.parametrize(("kernel", "constants", "types", "n", "registers"), ROWS)
def test_rows_stay_in_registers(kernel, constants, types, n: int, registers: int) -> None:
    tile = integer_tiles.row_tile(n)
    built = build(kernel, {**constants, "R": tile.rows, "B": tile.width}, "sm_90", tile.warps, **types)
    no_float(built)
    whole(built)
    assert not built.sass or (built.stack == 0 and built.registers <= most(built.name, registers))


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_a_long_gated_row_spills_nothing(target: str) -> None:
    """In two halves, one after the other; a factor for each channel is what takes most."""
    tile = integer_tiles.row_tile(14336)
    assert tile.halved and tile.warps == 16
    constants = {**GATED, "EACH": True, "R": tile.rows, "B": tile.width}
    built = build(integer_activation_halves_kernel, constants, target, tile.warps)
    no_float(built)
    whole(built)
    assert not built.sass or (built.stack == 0 and built.registers <= 120)


def whole(built: Built) -> None:
    """Rows of int32 are read by 16 bytes."""
    assert sum(".v4.b32" in line for line in built.assembly.splitlines() if "ld.global" in line) >= 2


def test_merged_heads() -> None:
    tile = integer_tiles.merge_tile(32, 128)
    built = build(integer_merge_kernel, {**CODES, "R": tile.rows, "B": tile.width}, "sm_90", tile.warps)
    no_float(built)
    whole(built)
    assert not built.sass or (built.stack == 0 and built.registers <= 64)


MMA = "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32"
LINEAR = [("sm_90", "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8", 1.4), ("sm_80", MMA, 1.2)]


@pytest.mark.parametrize(("target", "matrix", "budget"), LINEAR)
def test_linear_of_few_rows(target: str, matrix: str, budget: float) -> None:
    """The loop of ``eight_bit``: the epilogue in integers costs it nothing."""
    tile = tiles.EIGHT_BIT[tiles.FEW]
    constants = {"ZERO": True, "UP": 3, "SPLITS": 4, "EVEN_K": True, "BM": tile.bm, "BN": tile.bn, "BK": 128,
                 "STAGES": tile.stages}  # fmt: skip
    built = build(integer_linear_kernel, constants, target, tile.warps, x="*i8")
    found = properties(built)
    assert found.matrix == {matrix} and found.conversions == found.allocations == 0 and found.copies["0x10"] >= 6
    no_float(built)
    if built.sass:
        assert (built.stack, found.spills) == (0, 0)
        assert found.per_weight(tile.bn * 128, built) <= most(f"integer_linear {target}", budget)


def attention(kernel, rows: int, width: int, target: str, keep: bool = True) -> Built:
    """Compiled as ``integer_tiles`` says, for heads of ``width`` channels, four a key head."""
    with tiles.compiling_for(tiles.FEW if rows <= 16 else None):
        tile = integer_tiles.attention_tile(rows, width, width, 8)
    constants = {"D": width, "DV": width, "G": 4, "UP": 1, "CLIP": 0, "CAUSAL": False, "KEEP": keep, "UNIT": 2,
                 "PARTS": tile.parts, "SHARE": tile.share, "BM": tile.rows, "BS": tile.keys, "BD": tile.width,
                 "BV": tile.v_width}  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {"totals": "*i64"} if "totals" in kernel.arg_names else {}
    return build(kernel, constants, target, tile.warps, keep="*i1", **types)


ATTENTION = [(integer_attention_kernel, 256, 255), (integer_attention_peaks_kernel, 4, 128),
             (integer_attention_parts_kernel, 4, 216)]  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
@pytest.mark.parametrize(("kernel", "rows", "registers"), ATTENTION)
def test_attention(kernel, rows: int, registers: int, target: str) -> None:
    built = attention(kernel, rows, 128, target)
    assert properties(built).matrix == {MMA}
    no_float(built)
    loads = [line for line in built.assembly.splitlines() if "ld.global" in line]
    assert sum(".b16" in line for line in loads) >= 8  # codes two by two: rows of the cache begin at even bytes
    assert not built.sass or (built.stack == 0 and built.registers <= most(f"{built.name} {target}", registers))


def test_who_is_last_is_asked_once_and_in_order() -> None:
    """One atomic addition, which releases what was stored before and acquires what others stored."""
    text = attention(integer_attention_parts_kernel, 4, 128, "sm_90").assembly
    assert len(re.findall(r"atom\.\S*add", text)) == 1 and re.search(r"atom\.\S*acq_rel\S*add", text)
    before = text.index("atom.")
    assert text.rindex("bar.sync", 0, before) > text.rindex("st.global.cg", 0, before) > 0
    assert not re.search(r"atom\.", attention(integer_attention_peaks_kernel, 4, 128, "sm_90").assembly)
