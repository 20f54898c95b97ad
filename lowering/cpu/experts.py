"""Linears of experts on a CPU: the kernels of ``target``, called for one expert after another in one operator.

What a kernel of a linear takes, its twin here takes; the packed weights are the linear's, one expert behind another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qpass.graph.program import Derived, Program
from qpass.lowering import Case, Kernel
from qpass.lowering.cpu import kernels, linears
from qpass.lowering.reference import DEQUANTIZE_EXPERTS, stacked


def _prepare(
    names: Mapping[str, str], program: Program, case: Case, *, one: Callable[..., dict[str, Derived]]
) -> dict[str, Derived]:
    """What ``one`` packs for a linear, for each expert."""
    return stacked(one(names, program, case), case.experts)


def _call_int8(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    kernels.load()
    *rows, offsets = inputs
    packed, scale, sums = (weights[key] for key in ("packed", "channel_scale", "sum"))
    return torch.ops.qpass_cpu.grouped_int8_linear(
        *linears.unsigned(*rows), packed, scale, sums, offsets, case.out_features, case.dtype
    )


def _call_int4(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    kernels.load()
    group = case.scheme.weight.group or case.in_features
    packed, scale, zero = (weights[key] for key in ("packed", "group_scale", "group_zero"))
    return torch.ops.qpass_cpu.grouped_int4_linear(
        inputs[0], packed, scale, zero, inputs[1], case.out_features, group, case.dtype
    )


def _call_int8_weight(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    kernels.load()
    return torch.ops.qpass_cpu.grouped_int8_weight_linear(
        inputs[0], weights["packed"], weights["channel_scale"], inputs[1], case.out_features, case.dtype
    )


def _twin(one: Kernel, call: Callable[..., Tensor]) -> Kernel:
    prepare = functools.partial(_prepare, one=one.prepare)
    return Kernel(one.name.replace("linear", "experts"), f"each expert: {one.rows}", one.refuses, prepare, call)


EXPERTS = (
    _twin(linears.INT8, _call_int8), _twin(linears.INT4, _call_int4), _twin(linears.INT8_WEIGHT, _call_int8_weight),
    DEQUANTIZE_EXPERTS,
)  # fmt: skip
