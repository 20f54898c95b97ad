"""What the compiler makes of attention over a cache of codes, for GPUs that are not here."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import triton.language as tl

from qpass.lowering.cuda import kv_tiles, tiles
from qpass.lowering.triton.compile_only import compile_for
from qpass.lowering.triton.kv_attention import kv_attention_kernel
from qpass.lowering.triton.properties import properties

BYTE = "int8:token:asym"
# a number is float64, as Inductor passes it
POINTERS = {"q": "*bf16", "k": "*i8", "v": "*i8", "mask": "*i1", "out": "*bf16", "parts": "*fp32", "scale": "fp64",
            "softcap": "fp64"}  # fmt: skip


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
@pytest.mark.parametrize("kind", ["int8", "e4m3"])
def test_codes_are_read_by_wide_loads(target: str, kind: str) -> None:
    """Heads of 128 with the tile that decode has: a bfloat16 instruction, no spill, no load of single codes."""
    tile = kv_tiles.Tile(16, 32, 128, 128, 4, 1, True)
    with tiles.compiling_for(tiles.FEW):
        assert kv_tiles.attention_tile(4, 128, 128, BYTE, BYTE) == tile
    zero = kind == "int8"
    constants = {
        "D": 128, "DV": 128, "G": 4, "K_KIND": kind, "K_EACH": 0, "K_ZERO": zero, "V_KIND": kind, "V_EACH": 0,
        "V_ZERO": zero, "CAUSAL": False, "MASK": "none", "CAPPED": False, "BLIND": True, "SPLIT": tile.split,
        "DTYPE": tl.bfloat16, "ROUND": tl.bfloat16, "PRECISION": "tf32", "BM": tile.rows, "BS": tile.keys,
        "BD": tile.width, "BV": tile.v_width, "STAGES": tile.stages, "ASM": True,
    }  # fmt: skip
    numbers = [name for name in kv_attention_kernel.arg_names if name not in POINTERS and name not in constants]
    signature = {**POINTERS, **dict.fromkeys(numbers, "i32")}
    built = compile_for(kv_attention_kernel, signature, constants, target, warps=tile.warps,
                        ragged=tuple(name for name in numbers if not name.startswith("q_")))  # fmt: skip
    codes = 2 * tile.keys * 128 // (32 * tile.warps)  # of keys and values, in one thread
    assert "ld.global.v4.b32" in built.assembly and "ld.global.b8" not in built.assembly
    assert "bf16.bf16" in built.assembly and "tf32" not in built.assembly
    assert not built.sass or (built.stack == 0 and built.registers <= 168)
    assert not built.sass or properties(built).instructions / codes < 8.5
