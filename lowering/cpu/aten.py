"""ATen's own int8 and int4 calls: what the cpu target uses where our kernels cannot run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qpass.graph.program import Derived, Program
from qpass.lowering import WIDEST_INT8, Case, Kernel

_INT4_GROUPS = (32, 64, 128, 256)


def _refuses_int8(case: Case) -> str | None:
    weight = case.scheme.weight
    inputs = case.scheme.input
    if inputs is None or weight.element != "int8":
        return ""
    fits = (inputs.element, inputs.granularity) == ("int8", "token")
    if weight.granularity != "channel" or not weight.symmetric or not fits:
        return "it takes 8-bit inputs and int8:channel:sym weights"
    return f"{case.in_features} inputs could overflow int32" if case.in_features > WIDEST_INT8 else None


def _prepare_int8(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    rows = torch.empty(case.out_features, dtype=torch.int32, device="meta")
    return {
        "plain": Derived((names["codes"],), lambda q: q.contiguous(), program.like(names["codes"])),
        "channel_scale": Derived((names["scale"],), lambda s: s.flatten().contiguous(), rows.float()),
        "sum": Derived((names["codes"],), lambda q: q.sum(1, dtype=torch.int32), rows),
    }


def _takes_unsigned() -> bool:
    codes, weight = (torch.empty(32, 32, dtype=dtype, device="meta") for dtype in (torch.uint8, torch.int8))
    try:
        torch._int_mm(codes, weight)
    except RuntimeError:
        return False
    return True


_UNSIGNED = _takes_unsigned()
"""Whether this torch says that the call takes unsigned inputs: 2.11 does not."""


def _call_int8(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    codes, scale, zero = inputs
    # unsigned inputs: the signed form of this call is two orders slower on processors without AMX
    if _UNSIGNED and codes.dtype is torch.int8:
        codes, zero = (codes.to(torch.int16) + 128).to(torch.uint8), zero + 128
    elif not _UNSIGNED and codes.dtype is torch.uint8:
        codes, zero = (codes.to(torch.int16) - 128).to(torch.int8), zero - 128
    sums = torch._int_mm(codes.flatten(0, -2), weights["plain"].t()).unflatten(0, codes.shape[:-1])
    out = (sums - zero * weights["sum"]).to(torch.float32) * weights["channel_scale"] * scale
    return (out if bias is None else out + bias).to(case.dtype)


def _refuses_int8_weight(case: Case) -> str | None:
    weight = case.scheme.weight
    if case.scheme.input is not None or weight.element != "int8":
        return ""
    if weight.granularity != "channel" or not weight.symmetric:
        return "it takes int8:channel:sym weights"
    if case.in_features % 16:  # it loads whole vectors, past the end of a row and of the weight
        return f"it takes multiples of 16 input features, not {case.in_features}"
    return None


def _prepare_int8_weight(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    parts = _prepare_int8(names, program, case)
    return {
        "plain": parts["plain"],
        "bf16_scale": Derived(
            (names["scale"],), lambda s: s.flatten().to(torch.bfloat16), parts["channel_scale"].like.to(torch.bfloat16)
        ),
    }


def _call_int8_weight(
    inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case
) -> Tensor:
    x = inputs[0].to(torch.bfloat16)  # the float32 form of this call is ten times slower
    out = torch._weight_int8pack_mm(x.flatten(0, -2), weights["plain"], weights["bf16_scale"])
    out = out.unflatten(0, x.shape[:-1]).to(case.dtype)
    return out if bias is None else out + bias


def _refuses_int4(case: Case) -> str | None:
    weight = case.scheme.weight
    if case.scheme.input is not None or weight.element != "int4":
        return ""
    if weight.symmetric:
        return "it takes unsigned codes"
    if weight.scale != "bf16":
        return "it takes scales of bf16"
    if weight.group not in _INT4_GROUPS:
        return f"it takes groups of {', '.join(map(str, _INT4_GROUPS))}"
    if case.out_features % 16 or case.in_features % weight.group:
        return f"it takes shapes in multiples of 16 x {weight.group}, not {case.out_features} x {case.in_features}"
    return None


def _prepare_int4(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    packed = torch.empty(case.out_features, case.in_features // 2, dtype=torch.uint8, device="meta")
    groups = case.in_features // case.scheme.weight.group
    pairs = torch.empty(groups, case.out_features, 2, dtype=torch.bfloat16, device="meta")
    return {
        "plain": Derived((names["codes"],), _pack_int4, packed),
        "pairs": Derived((names["scale"], names["zero"]), _int4_pairs, pairs),
    }


def _pack_int4(codes: Tensor) -> Tensor:
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)


def _int4_pairs(scale_NG: Tensor, zero_NG: Tensor) -> Tensor:
    """ATen means (q - 8) · s + z with a float z; ours is (q - zero) · s, so z = (8 - zero) · s."""
    z = (8 - zero_NG.to(torch.float32)) * scale_NG.to(torch.float32)
    return torch.stack((scale_NG.to(torch.float32), z), -1).transpose(0, 1).contiguous().to(torch.bfloat16)


def _call_int4(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    x = inputs[0].to(torch.bfloat16)  # the float32 form of this call is tens of times slower
    group = case.scheme.weight.group
    out = torch.ops.aten._weight_int4pack_mm_for_cpu(x.flatten(0, -2), weights["plain"], group, weights["pairs"])
    out = out.unflatten(0, x.shape[:-1]).to(case.dtype)
    return out if bias is None else out + bias


ATEN_INT8 = Kernel(
    "aten._int_mm", "any number of rows; int32 sums are exact", _refuses_int8, _prepare_int8, _call_int8
)
ATEN_INT4 = Kernel(
    "aten._weight_int4pack_mm_for_cpu", "fast up to 4 rows; inputs and zero points are rounded to bfloat16",
    _refuses_int4, _prepare_int4, _call_int4,
)  # fmt: skip
ATEN_INT8_WEIGHT = Kernel(
    "aten._weight_int8pack_mm", "fast up to 4 rows; inputs and scales are rounded to bfloat16",
    _refuses_int8_weight, _prepare_int8_weight, _call_int8_weight,
)  # fmt: skip
