"""What was learned, as edits and parameters: the codes come from the trained quantizer, nothing else remains."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.formats import AttentionScheme, Format, Scheme
from qpass.graph.program import Derived, Param, Program
from qpass.learn.block import BlockModel, Leaves
from qpass.learn.fake import folded
from qpass.numerics import codec
from qpass.numerics.scales import Scales
from qpass.observe.segment import SegmentRunner
from qpass.sites.blocks import Segment
from qpass.sites.edits import Edit, Fold, Shift, apply


@dataclass(frozen=True)
class Folded:
    """One block after learning.

    Args:
        edits: its exact re-scalings, in order.
        params: learned parameters, and codes and scales of its weights.
    """

    edits: tuple[Edit, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)


def fold(program: Program, model: BlockModel, leaves: Leaves, *, add_bias: bool, by: str) -> Folded:
    """The edits and parameters of a block. program: what ``model`` was made from."""
    edits = _edits(model, leaves)
    trained = {name: leaves[key].detach().to(program.like(name)) for name, key in model.trained.items()}
    started = replace(program, params={**program.params, **trained})
    edited = apply(started, edits, add_bias=add_bias, by=by, read=False)
    params: dict[str, Param] = {}
    if trained:  # their final values, and those of biases that gained a product with one
        touched = {name for placed, _, _ in model.places for name in placed.params}
        params |= {name: edited.tensor(name) for name in sorted(set(trained) | touched)}
    for weight, scheme in model.view.weights.items():
        keys = model.clips.get(weight)
        beta, gamma = (leaves[key].detach().cpu() for key in keys) if keys else (None, None)
        params |= codes(weight, edited.tensor(weight).cpu(), scheme.weight.plain, beta, gamma)
    return Folded(tuple(edits), params)


def codes(name: str, value: Tensor, fmt: Format, beta: Tensor | None, gamma: Tensor | None) -> dict[str, Param]:
    """``<weight>.scale``, ``.zero`` and ``.codes`` of a final weight [N, K]; codes are made when they are asked for."""
    found = folded(value, fmt, beta, gamma)
    parts = {part: tensor for part, tensor in zip(Scales._fields, found) if tensor is not None}
    sources = (name, *(f"{name}.{part}" for part in parts))
    like = torch.empty(value.shape, dtype=fmt.code_dtype, device="meta")
    derived = Derived(sources, functools.partial(_round, have=list(parts), fmt=fmt), like)
    return {**{f"{name}.{part}": tensor for part, tensor in parts.items()}, f"{name}.codes": derived}


def _round(weight: Tensor, *parts: Tensor, have: list[str], fmt: Format) -> Tensor:
    return codec.quantize(weight, Scales(**dict(zip(have, parts))), fmt)


def _edits(model: BlockModel, leaves: Leaves) -> list[Edit]:
    edits: list[Edit] = []
    for placed, t, delta in model.places:
        if delta is not None:
            edits.append(Shift(placed.site, leaves[delta].detach().cpu().double()))
        edits.append(Fold(placed.site, leaves[t].detach().cpu().double().exp()))
    return edits


class FoldedBlock:
    """A block as it will be deployed: codes dequantized, inputs through ``codec``; float32 in between.

    Args:
        program: with the block's edits and parameters.
        linears, attentions: as in ``View``.
    """

    def __init__(
        self, program: Program, segment: Segment, linears: Mapping[str, tuple[str, Scheme]], *,
        attentions: Mapping[str, AttentionScheme] = MappingProxyType({}), device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.runner, self.linears = SegmentRunner(program, segment, device=device), linears
        self.attentions, self.device = attentions, device
        self.values = {name: program.tensor(name) for name in self._reads(program, segment)}
        self.values = {name: value.to(torch.float32) if value.is_floating_point() else value
                       for name, value in self.values.items()}  # fmt: skip
        for weight, scheme in dict(linears.values()).items():
            self.values[weight] = _dequantized(program, weight, scheme.weight.plain)
        self.values = {name: value.to(device) for name, value in self.values.items()}

    def _reads(self, program: Program, segment: Segment) -> set[str]:
        inside = set(segment.nodes)
        return {str(source.target) for node in program.graph.nodes if node.meta.get("name") in inside
                for source in node.all_input_nodes if source.op == "get_attr"}  # fmt: skip

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of the block by value name."""

        def linear(name: str, x: Tensor, weight: str, bias: Tensor | None) -> Tensor:
            fmt = self.linears[name][1].input if name in self.linears else None
            if fmt is not None:
                x = codec.round_rows(x, fmt)
            return F.linear(x, self.values[weight], bias)

        def attend(name: str, op: Any, args: Sequence[Any]) -> Tensor:
            return ops.attend(op, args, self.attentions.get(name))

        given = {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return self.runner.run(given, self.values.__getitem__, linear=linear, attend=attend)


def _dequantized(program: Program, weight: str, fmt: Format) -> Tensor:
    """The float32 weight that its codes stand for, rounded as the model's dtype rounds it."""
    value = program.tensor(weight)
    if f"{weight}.scale" not in program.params:
        found = codec.choose(value, fmt)
    else:
        parts = (f"{weight}.{part}" for part in Scales._fields)
        found = Scales(*(program.tensor(part) if part in program.params else None for part in parts))  # type: ignore[arg-type]
    have = f"{weight}.codes" in program.params
    numbers = program.tensor(f"{weight}.codes") if have else codec.quantize(value, found, fmt)
    return codec.dequantize(numbers, found, fmt, value.dtype).to(torch.float32)
