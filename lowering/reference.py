"""Target ``reference``: every op is its own meaning. Runs on any device, eagerly; the oracle of all other targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import qpass.lowering as lowering
from qpass import ops
from qpass.graph.program import Derived, Program, materialise
from qpass.lowering import Case
from qpass.numerics import bit_planes


def _prepare(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    """Codes of fewer than eight bits lie in that many bits, so that memory is what the plan says."""
    bits = case.scheme.weight.bits
    if bits == 8:
        return {}
    like = torch.empty(bits, case.out_features, -(-case.in_features // 8), dtype=torch.uint8, device="meta")
    return {"planes": Derived((names["codes"],), functools.partial(bit_planes.pack, bits=bits), like)}


def _call(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: Tensor | None, case: Case) -> Tensor:
    fmt = case.scheme.weight
    codes = weights.get("codes")
    if codes is None:
        codes = bit_planes.unpack(weights["planes"], case.in_features, fmt.code_dtype)
    parts = codes, weights["scale"], weights.get("zero"), weights.get("outer")
    if case.scheme.input is None:
        return ops.weight_only_linear(inputs[0], *parts, bias, str(case.scheme.weight))
    formats = str(case.scheme.input), str(case.scheme.weight)
    return ops.linear(*inputs, *parts, bias, *formats, case.dtype)


def stacked(parts: Mapping[str, Derived], experts: int) -> dict[str, Derived]:
    """What a kernel packs for one expert, for all of them: their rows lie one after another in every source."""
    return {
        key: Derived(part.sources, functools.partial(_stack, experts=experts, pack=part.fn),
                     torch.empty((experts, *part.like.shape), dtype=part.like.dtype, device="meta"))
        for key, part in parts.items()
    }  # fmt: skip


def _stack(*rows: Tensor, experts: int, pack: Callable[..., Tensor]) -> Tensor:
    return torch.stack([pack(*parts) for parts in zip(*(part.chunk(experts) for part in rows))])


def _prepare_experts(names: Mapping[str, str], program: Program, case: Case) -> dict[str, Derived]:
    return _prepare(names, program, replace(case, out_features=case.experts * case.out_features))


def _call_experts(inputs: tuple[Tensor, ...], weights: Mapping[str, Tensor], bias: None, case: Case) -> Tensor:
    codes = weights.get("codes")
    if codes is None:
        codes = bit_planes.unpack(weights["planes"], case.in_features, case.scheme.weight.code_dtype)
    parts = codes, weights["scale"], weights.get("zero"), weights.get("outer")
    *rows, offsets = inputs
    if case.scheme.input is None:
        return ops.weight_only_grouped_linear(rows[0], *parts, offsets, str(case.scheme.weight))
    formats = str(case.scheme.input), str(case.scheme.weight)
    return ops.quantized_grouped_linear(*rows, *parts, offsets, *formats, case.dtype)


DEQUANTIZE = lowering.Kernel(
    name="reference.dequantize",
    rows="any number of rows: dequantize, then a float linear; no speed or memory is gained while it runs",
    refuses=lambda case: None,
    prepare=_prepare,
    call=_call,
    parts=("codes", "scale", "zero", "outer"),
)

DEQUANTIZE_EXPERTS = lowering.Kernel(
    name="reference.dequantize_experts",
    rows="any number of rows: dequantize all experts, then a float product for each; no speed or memory is gained",
    refuses=lambda case: None,
    prepare=_prepare_experts,
    call=_call_experts,
    parts=("codes", "scale", "zero", "outer"),
)


class Interpreted(torch.nn.Module):
    """A program run op by op. Flat tensors in, flat tuple out; weights are buffers."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._names = {}
        for number, (name, tensor) in enumerate(materialise(program).items()):
            self._names[name] = f"param_{number}"
            self.register_buffer(f"param_{number}", tensor)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the graph."""
        params = {name: getattr(self, attribute) for name, attribute in self._names.items()}
        with torch.no_grad():
            return tuple(self._program.run(*inputs, params=params))


target = lowering.Target("reference", (DEQUANTIZE,), Interpreted, device="any", grouped=(DEQUANTIZE_EXPERTS,))
