"""The kernels compiled for GPUs that are not here, each once a run."""

from __future__ import annotations

import functools
from typing import Any

import triton

from qpass.formats import Format
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.kernels import grouped, integers, scale_place
from qpass.lowering.cuda.ops import _four_bit
from qpass.lowering.triton.compile_only import Built, compile_for
from qpass.lowering.triton.eight_bit import eight_bit_kernel
from qpass.lowering.triton.fp8_block import fp8_block_kernel
from qpass.lowering.triton.integer_linear import integer_linear_kernel
from qpass.lowering.triton.w4a8_fp8 import w4a8_fp8_kernel
from qpass.lowering.triton.w4a8_int8 import w4a8_int8_kernel
from qpass.lowering.triton.w4a16 import w4a16_kernel

TYPES = {
    **dict.fromkeys(("M", "N", "K", "stride_x", "stride_w", "stride_out", "stride_residual", "rows"), "i32"),
    "x_scale": "*fp32", "x_zero": "*i32", "packed": "*i8", "meta": "*i32", "bias": "*bf16", "out": "*bf16",
    "branch": "*bf16", "residual": "*bf16", "up": "*i8", "up_scale": "*fp32",
    "workspace": "*fp32", "counters": "*i32", "tables": "*i32", "factor": "*fp32", "scale": "*bf16", "sums": "*fp32",
}  # fmt: skip

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
OTHERWISE: dict[str, float] = {}
"""Budgets of another Triton than the development set's 3.7, where its text is another one."""
if TRITON < (3, 7):
    # Lookups in a table get a layout of their own, and rows go through shared memory twice. No spill.
    OTHERWISE |= {"integer_activation_kernel": 128, "integer_attention_parts_kernel sm_90": 224}
    OTHERWISE |= {"fp8_block residual": 0.3}  # 255 registers with and without, filled otherwise
if TRITON >= (3, 9):
    # For sm_80 the first bytes of the next tile are read a round ahead, and packed anew one by one (PRMT).
    OTHERWISE |= {"int8 sm_80": 2.6, "grouped int8 sm_80": 2.7, "integer_linear sm_80": 2.6}
    # Its assembler puts a wait between these warp-group dots, which Triton asked for at the end of each half only.
    OTHERWISE |= {"w4a8_fp8": 2.1}
    OTHERWISE |= {"w4a8_int8-group32": 3.4}  # two more instructions for addresses


def most(what: str, budget: float) -> float:
    """``budget``, or what this Triton needs for ``what``."""
    return OTHERWISE.get(what, budget)


@functools.cache
def built(
    name: str, bucket: int | None, target: str = "sm_90", group: int = 128, real: bool = False, signed: bool = False,
    rank: int = 0, residual: bool = False, tile: tiles.Tile | None = None,
) -> tuple[Built, int]:
    """(the kernel ``name`` with the tile of a bucket, the weights of one round of its loop)."""
    kernel, table, types, constants = _kind(name, group, real, signed, target)
    tile = tile or tiles.tile(table, bucket, warp_groups=target == "sm_90")
    constants |= {
        "SPLITS": 1 if bucket is None else 4, "HAS_BIAS": True, "HAS_RESIDUAL": residual, "EVEN_K": True,
        "BM": tile.bm, "BN": tile.bn, "STAGES": tile.stages, "RANK": rank, "PADDED": max(16, rank), "INT8_UP": True,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    made = compile_for(kernel, {**TYPES, **types}, constants, target, warps=tile.warps)
    return made, tile.bn * constants.get("BK", 128)


def _kind(
    name: str, group: int, real: bool, signed: bool, target: str
) -> tuple[Any, Any, dict[str, str], dict[str, Any]]:
    asm = target.startswith("sm_")
    elements = "*i8" if name == "w4a8_fp8" else "*i16"
    packed = {"packed": elements if asm else "*i32"}
    fmt = Format.parse(f"int4:{f'g{group}' if group else 'channel'}:{'sym' if signed else 'asym'}")
    order = {"w4a16": "bf16", "w4a8_int8": integers(fmt)}.get(name, "lut")
    layout = grouped(fmt, order).layout
    four = {"GROUP": group, "BK": layout.block, "ASM": asm, "SCALE": scale_place(fmt), "SIGNED": signed,
            "JOINED": target == "sm_90" and 4 * group != layout.block}
    table = _four_bit(layout, group)
    fp8 = "*fp8e4nv" if asm else "*fp8e4b8"
    if name == "w4a16":
        kinds = {"x": "*bf16", **packed} | ({} if group else {"scale": "*fp32"})
        return w4a16_kernel, table, kinds, four
    if name == "w4a8_int8":
        kinds = {"x": "*i8", **packed} | ({} if group else {"scale": "*fp32", "workspace": "*i32"})
        return w4a8_int8_kernel, table, kinds, {**four, "ZERO": True}
    if name == "w4a8_fp8":
        kinds = {"x": "*fp8e4nv", "choice": "*fp16" if real else "*u8", **packed}
        return w4a8_fp8_kernel, tiles.FOUR_BIT, kinds, {**four, "REAL": real}
    if name == "fp8_block":
        return fp8_block_kernel, tiles.FP8_BLOCK, {"x": fp8, "weight": fp8, "scale": "*fp32"}, {}
    if name == "integer_linear":
        numbers = dict.fromkeys(
            ("x_m", "x_k", "sums", "mantissa", "shift", "exponent", "out", "out_k", "workspace"), "*i32"
        )
        kinds = {"x": "*i8", "weight": "*i8", **numbers}
        return integer_linear_kernel, tiles.EIGHT_BIT, kinds, {"ZERO": True, "UP": 3, "BK": 128}
    integer = name == "int8"
    element = "*i8" if integer else fp8
    types = {"x": element, "weight": element, "scale": "*fp32", "sums": "*i32"}
    types |= {"workspace": "*i32"} if integer else {}
    return eight_bit_kernel, tiles.EIGHT_BIT, types, {"INTEGER": integer, "ZERO": integer, "BK": 128}
