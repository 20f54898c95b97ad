"""Whether this Triton keeps the words of packed weights whole: which register holds which element is not documented."""

from __future__ import annotations

import functools

import triton

from qpass.lowering.triton.compile_only import compile_for
from qpass.lowering.triton.properties import properties
from qpass.lowering.triton.w4a16 import w4a16_kernel

_TYPES = {
    **dict.fromkeys(("x", "scale", "bias", "branch", "up", "residual", "out"), "*bf16"),
    "packed": "*i16", "meta": "*i32", "up_scale": "*fp32", "workspace": "*fp32", "counters": "*i32",
    **dict.fromkeys(("M", "N", "K", "stride_x", "stride_out", "stride_residual", "rows"), "i32"),
}  # fmt: skip
_CONSTANTS = {"GROUP": 128, "SCALE": "bf16", "SPLITS": 1, "HAS_BIAS": False, "HAS_RESIDUAL": False,
              "EVEN_K": True, "BM": 16, "BN": 128, "BK": 128, "STAGES": 3, "JOINED": False, "ASM": True, "RANK": 0,
              "PADDED": 16, "INT8_UP": False}  # fmt: skip


@functools.cache
def differs(target: str) -> str | None:
    """Why packed words would be unpacked wrongly for ``target``; None if they would not.

    Compiles one kernel, which takes seconds, and looks whether each unpacking gets its word straight from a load.
    """
    count, direct = properties(compile_for(w4a16_kernel, _TYPES, _CONSTANTS, target)).words
    if count and count == direct:
        return None
    return (f"Triton {triton.__version__} does not hold words as they are packed ({direct} of {count} straight from a "
            f"load): unpacking would be wrong")  # fmt: skip
