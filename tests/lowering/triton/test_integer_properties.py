"""What the compiler makes of the kernels of integer-only programs, for GPUs that are not here."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from qpass.lowering.cuda import integer_tiles
from qpass.lowering.triton.compile_only import Built, compile_for
from qpass.lowering.triton.integer_activation import integer_activation_kernel
from qpass.lowering.triton.integer_heads import integer_heads_kernel, integer_merge_kernel
from qpass.lowering.triton.integer_norm import integer_norm_kernel

CODES = {"CODES": True, "BITS": 8, "SYMMETRIC": False, "MANTISSA": 15}
NORM = {"ADD": True, "NORM": True, "CENTER": False, "WEIGHT": True, "BIAS": False, **CODES}
GATED = {"KIND": 1, "GATED": True, "EACH": False, **CODES}
HEADS = {"ROTARY": True, "CACHE": False, **CODES, "SYMMETRIC": True}
BYTES = ("codes", "weight", "q", "keys", "values", "keep")
SMALL = ("M", "R", "T", "H", "S", "eps_mantissa", "eps_exponent", "root_n", "places", "scale_mantissa",
         "scale_exponent", "keep_t", "k_b", "k_h", "k_t", "k_m", "k_h", "HEADS", "key_b", "key_h", "key_t", "value_b",
         "value_h", "value_t", "keep_b", "keep_s")  # fmt: skip


def build(kernel, constants: dict, target: str, warps: int, **types: str) -> Built:
    """Tensors are int32 but for ``BYTES``; sizes and strides int32."""
    scalars = {"M", "N", "K", "H", "T", "S", "D", "DV", "HEADS", "root_n", "places"}
    signature = {}
    for name in kernel.arg_names:
        number = name in scalars or name.startswith(("stride", "eps", "scale_")) or re.fullmatch(r"\w+_[bhtms]", name)
        number = (number and name not in ("x_m",)) or (name in ("x_m",) and kernel is integer_merge_kernel)
        signature[name] = "i32" if number else "*i8" if name in BYTES else "*i32"
    return compile_for(kernel, {**signature, **types}, constants, target, warps=warps, ragged=SMALL)


def row(kernel, n: int, target: str, constants: dict, **types: str) -> Built:
    tile = integer_tiles.row_tile(n)
    return build(kernel, {**constants, "R": tile.rows, "B": tile.width}, target, tile.warps, **types)


def no_float(built: Built) -> None:
    """Integers only, down to the instructions: no type of a float in PTX but for copies."""
    assert not re.findall(r"\b(?!mov|ld|st)\w+(?:\.\w+)*\.(?:f16|bf16|f32|f64|tf32)\b", built.assembly)


def wide_loads(built: Built, parts: int) -> None:
    loads = [line for line in built.assembly.splitlines() if "ld.global" in line]
    assert sum(".v4.b32" in line for line in loads) >= parts


ROWS = [(integer_norm_kernel, NORM, {}, 4096, 64), (integer_norm_kernel, NORM, {}, 14336, 100),
        (integer_activation_kernel, GATED, {}, 14336, 128), (integer_activation_kernel, GATED, {}, 4096, 80),
        (integer_heads_kernel, HEADS, {"cos": "*i16", "sin": "*i16"}, 128, 80)]  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
@pytest.mark.parametrize(("kernel", "constants", "types", "n", "registers"), ROWS)
def test_rows_stay_in_registers(kernel, constants, types, n: int, registers: int, target: str) -> None:
    built = row(kernel, n, target, constants, **types)
    no_float(built)
    wide_loads(built, 1)
    print(built.name, n, target, built.registers, built.stack, len(built.sass))
    if built.sass:
        assert built.stack == 0 and built.registers <= registers


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_merged_heads(target: str) -> None:
    tile = integer_tiles.merge_tile(32, 128)
    built = build(integer_merge_kernel, {**CODES, "R": tile.rows, "B": tile.width}, target, tile.warps)
    no_float(built)
    wide_loads(built, 1)
    print(built.name, target, built.registers, built.stack)
    assert built.stack <= 0
