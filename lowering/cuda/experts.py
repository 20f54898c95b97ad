"""The linears of experts of the CUDA target: what the linears of the same formats take, packed for each expert."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qpass.graph.program import Derived, Program
from qpass.lowering import Case, Kernel, Provider
from qpass.lowering.cuda import kernels, weights
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.reference import stacked


@functools.cache
def load() -> None:
    """Register the operators, which needs Triton."""
    importlib.import_module("qpass.lowering.cuda.ops_experts")


def _prepare(
    names: Mapping[str, str], program: Program, case: Case, *, one: Callable[..., dict[str, Derived]]
) -> dict[str, Derived]:
    """What ``one`` packs for a linear, for each expert; kernels of experts have no counters, as they do not split K."""
    parts = {key: part for key, part in one(names, program, case).items() if key != "counters"}
    shared = {key: parts.pop(key) for key in ("tables",) if key in parts}  # of a format, whatever the weight
    return {**stacked(parts, case.experts), **shared}


def _call_int8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    codes, scale, zero = kernels.signed(inputs[:3])
    return torch.ops.qpass_cuda.grouped_int8_linear(
        codes, scale, zero, found["plain"], found["row_scale"], found["sum"], inputs[3], case.dtype
    )


def _call_fp8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    codes, scale, _, offsets = inputs
    return torch.ops.qpass_cuda.grouped_fp8_linear(
        codes, scale, found["plain"], found["row_scale"], offsets, case.dtype
    )


def _call_fp8_block(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    codes, scale, _, offsets = inputs
    return torch.ops.qpass_cuda.grouped_fp8_block_linear(
        codes, scale, found["plain"], found["scale"], offsets, case.dtype
    )


def _call_w4a16(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    fmt = case.scheme.weight
    lay = kernels.grouped(fmt, "bf16")
    assert lay is not None
    return torch.ops.qpass_cuda.grouped_w4a16_linear(
        inputs[0], found["words"], found["group_meta"], found.get("group_scale"), inputs[1], case.out_features,
        lay.group, str(lay.layout), kernels.scale_place(fmt),
    )  # fmt: skip


def _call_w4a8_int8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    codes, scale, zero = kernels.signed(inputs[:3])
    fmt = case.scheme.weight
    lay = kernels.grouped(fmt, kernels.integers(fmt))
    assert lay is not None
    return torch.ops.qpass_cuda.grouped_w4a8_int8_linear(
        codes, scale, zero, found["words"], found["group_meta"], found.get("group_scale"), found["sum"], inputs[3],
        case.out_features, lay.group, str(lay.layout), kernels.scale_place(fmt), case.dtype,
    )  # fmt: skip


def _call_w4a8_fp8(inputs: tuple[Tensor, ...], found: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    load()
    lay = kernels.grouped(case.scheme.weight, "lut")
    assert lay is not None
    return torch.ops.qpass_cuda.grouped_w4a8_fp8_linear(
        inputs[0], inputs[1], found["words"], found["tables"], found["choice"], found["factor"], inputs[3],
        case.out_features, lay.group or weights.ONE_GROUP, str(lay.layout), case.dtype,
    )  # fmt: skip


def _no_ragged_dot(x: Tensor, weight: Tensor, offsets: Tensor) -> str | None:
    if x.dtype is not torch.bfloat16:
        return f"cuda.grouped_mm is for bfloat16, not {x.dtype}".replace("torch.", "")
    return None if x.shape[1] % 8 == weight.shape[1] % 8 == 0 else "cuda.grouped_mm takes sizes in multiples of 8"


FLOAT = Provider(
    "cuda.grouped_mm", "experts that stay in float, by ATen's grouped product; rows behind the last are not set",
    _no_ragged_dot, lambda x, weight, offsets: torch.ops.aten._grouped_mm.default(x, weight.transpose(1, 2), offsets),
)  # fmt: skip

_ONE = "one launch for all experts, whose rows are counted on the device; weights are the left operand, K is not split"


def experts(capability: Capability) -> tuple[Kernel, ...]:
    """In order of preference, for a GPU of this capability: twins of the linears that have one."""
    calls: dict[str, Any] = {
        "cuda.int8_linear": _call_int8, "cuda.fp8_linear": _call_fp8, "cuda.fp8_block_linear": _call_fp8_block,
        "cuda.w4a8_int8_linear": _call_w4a8_int8, "cuda.w4a16_linear": _call_w4a16,
        "cuda.w4a8_fp8_linear": _call_w4a8_fp8,
    }  # fmt: skip
    return tuple(
        Kernel(one.name.replace("linear", "experts"), _ONE, one.refuses, functools.partial(_prepare, one=one.prepare),
               calls[one.name], one.parts)
        for one in kernels.kernels(capability) if one.name in calls
    )  # fmt: skip
