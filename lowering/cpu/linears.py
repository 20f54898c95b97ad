"""Linears on a CPU: our own C++ where the processor has AVX-512 VNNI. Each refuses what it cannot do, in words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qpass.graph.program import Derived, Program
from qpass.lowering import WIDEST_INT8, Case, Kernel
from qpass.lowering.cpu import kernels

OTHER_KIND = ""


def _unavailable(case: Case) -> str | None:
    return kernels.available()


def _refuses_int8(case: Case) -> str | None:
    weight, activation = case.scheme.weight, case.scheme.input
    if activation is None or activation.element != "int8" or activation.granularity != "token":
        return OTHER_KIND
    if weight.element != "int8" or weight.granularity != "channel" or not weight.symmetric or weight.scale != "f32":
        return "it takes int8:channel:sym weights"
    if case.in_features > WIDEST_INT8:
        return f"{case.in_features} inputs could overflow int32"
    return _unavailable(case)


def _prepare_int8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    codes, scale = names["codes"], names["scale"]
    rows = torch.empty(case.out_features, dtype=torch.int32, device="meta")
    return {
        "packed": Derived((codes,), kernels.pack_int8_weight, _packed_like(case, kernels.INT8_PER_LANE, torch.int8)),
        "channel_scale": Derived((scale,), lambda s: s.flatten().contiguous(), rows.float()),
        "sum": Derived((codes,), lambda q: q.sum(1, dtype=torch.int32), rows),
    }


def _call_int8(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    kernels.load()
    packed, channel_scale, sums = (weights[key] for key in ("packed", "channel_scale", "sum"))
    return torch.ops.qpass_cpu.int8_linear(
        *unsigned(*inputs), packed, channel_scale, sums, bias, case.out_features, case.dtype
    )


def unsigned(codes: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of an input, a symmetric grid moved to where unsigned codes live."""
    if codes.dtype is torch.int8:
        codes, zero = (codes.to(torch.int16) + 128).to(torch.uint8), zero + 128
    return codes, scale, zero


def _refuses_int4(case: Case) -> str | None:
    weight = case.scheme.weight
    if case.scheme.input is not None or weight.element != "int4":
        return OTHER_KIND
    if weight.granularity == "group" and weight.scale != "bf16":
        return "it takes scales of bf16"
    if weight.group % 2 and weight.group < case.in_features:
        return "it takes groups of an even size"
    if weight.symmetric:
        return "it takes unsigned codes"
    return _unavailable(case)


def _prepare_int4(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    groups = case.scheme.weight.groups(case.in_features)
    scale = torch.empty(groups, case.out_features, dtype=torch.bfloat16, device="meta")
    packed = _packed_like(case, kernels.INT4_PER_LANE, torch.uint8)
    return {
        "packed": Derived((names["codes"],), kernels.pack_int4, packed),
        "group_scale": Derived((names["scale"],), lambda s: s.t().contiguous().to(torch.bfloat16), scale),
        "group_zero": Derived((names["zero"],), lambda z: z.t().contiguous(), scale.to(torch.uint8)),
    }


def _call_int4(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    kernels.load()
    group = case.scheme.weight.group or case.in_features
    return torch.ops.qpass_cpu.int4_linear(
        inputs[0], weights["packed"], weights["group_scale"], weights["group_zero"], bias, case.out_features, group,
        case.dtype,
    )  # fmt: skip


def _refuses_int8_weight(case: Case) -> str | None:
    weight = case.scheme.weight
    if case.scheme.input is not None or weight.element != "int8":
        return OTHER_KIND
    if weight.granularity != "channel" or not weight.symmetric or weight.scale != "f32":
        return "it takes int8:channel:sym weights"
    return _unavailable(case)


def _prepare_int8_weight(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    parts = _prepare_int8(names, program, case)
    return {key: parts[key] for key in ("packed", "channel_scale")}


def _call_int8_weight(
    inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case
) -> Tensor:
    kernels.load()
    return torch.ops.qpass_cpu.int8_weight_linear(
        inputs[0], weights["packed"], weights["channel_scale"], bias, case.out_features, case.dtype
    )


def _packed_like(case: Case, per_lane: int, dtype: torch.dtype) -> Tensor:
    shape = (-(-case.out_features // kernels.BLOCK), -(-case.in_features // per_lane), kernels.BLOCK, 4)
    return torch.empty(shape, dtype=dtype, device="meta")


_FLOAT_SIDE = "float inputs are rounded to bfloat16"

INT8 = Kernel(
    "cpu.int8_linear",
    "VNNI dot products, with AMX its tiles from 9 rows on; int32 sums are exact",
    _refuses_int8, _prepare_int8, _call_int8,
)  # fmt: skip
INT4 = Kernel(
    "cpu.int4_linear",
    f"4-bit weights unpacked in registers or L1 up to 32 rows (16 without AVX512-BF16), in L2 above; {_FLOAT_SIDE}",
    _refuses_int4, _prepare_int4, _call_int4,
)  # fmt: skip
INT8_WEIGHT = Kernel(
    "cpu.int8_weight_linear",
    f"8-bit weights unpacked in registers or L1 up to 32 rows (16 without AVX512-BF16), in L2 above; {_FLOAT_SIDE}",
    _refuses_int8_weight, _prepare_int8_weight, _call_int8_weight,
)  # fmt: skip
