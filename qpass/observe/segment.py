"""Run one segment of a program, on any parameters, with autograd: what calibration by blocks steps on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import VerifyError
from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.sites.blocks import Segment
from qpass.sites.widen import WideMeaning, retyped, widened

aten = torch.ops.aten

Read = Callable[[str], Tensor]
"""A parameter by name."""
Linear = Callable[[str, Tensor, str, Tensor | None], Tensor]
"""What a linear computes: value name, input [..., K], name of its weight, bias [N] or None -> [..., N]."""
Attend = Callable[[str, Any, Sequence[Any]], Tensor]
"""What an attention computes: value name, its op of the dialect, that op's arguments -> [B, H, T, D]."""
Smooth = Mapping[str, Tensor]
"""Value name of an activation -> r [C]: x · h(x) becomes x · h(x · r), times what it has."""
Tap = Callable[[str, Any], None]

_SMOOTH_AT = {ops.activation: 2, ops.gated: 3}


class SegmentRunner:
    """A segment as a list of calls, made once and run often. Every floating-point value is float32.

    Args:
        program: NORMAL to SOLVED; ``segment`` is of it, or of a program whose values have the same names.
        device: where factories make their tensors; None leaves them.
    """

    def __init__(self, program: Program, segment: Segment, *, device: torch.device | None = None) -> None:
        nodes = {node.meta["name"]: node for node in program.graph.nodes if node.op != "output"}
        self.segment = segment
        self.nodes = [nodes[name] for name in segment.nodes]
        self.names = {node: node.meta["name"] for node in program.graph.nodes}
        self.wide = any(_is_narrow(node) for node in self.nodes)
        self.calls = [(node, *_prepared(node, self.wide, device)) for node in self.nodes if node.op == "call_function"]
        self.kept = set(segment.outputs)

    def run(
        self, inputs: Mapping[str, Any], read: Read, *, linear: Linear | None = None, attend: Attend | None = None,
        smooth: Smooth | None = None, tap: Tap | None = None, only: frozenset[str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The segment's outputs by value name.

        Args:
            inputs: what it reads of other segments, and of the program's inputs its own, by value name.
            read: its parameters, in float32.
            linear: replaces every linear whose weight is a parameter.
            attend: replaces every attention of the dialect.
            smooth: extra factors of activations.
            tap: called with every value made, by name.
            only: stop as soon as these are there.
        """
        kept = self.kept if only is None else only
        values: dict[fx.Node, Any] = {}
        uses = Counter({node: len(node.users) for node in self.nodes})
        result: dict[str, Any] = {}

        def value(node: fx.Node) -> Any:
            if node.op == "get_attr":
                return read(str(node.target))
            return values[node] if node in values else inputs[self.names[node]]

        for node, call, args, kwargs in self.calls:
            name = self.names[node]
            if linear is not None and node.target is aten.linear.default and args[1].op == "get_attr":
                bias = value(args[2]) if len(args) > 2 and args[2] is not None else None
                made = linear(name, value(args[0]), str(args[1].target), bias)
            else:
                given, words = fx.map_arg((args, kwargs), value)
                if smooth and name in smooth:
                    given = _smoothed(node, given, smooth[name])
                attends = attend is not None and node.target in ops.ATTENTIONS
                made = attend(name, node.target, given) if attends else self._call(node, call, given, words)
            values[node] = made
            if tap is not None:
                tap(name, made)
            if name in kept:
                result[name] = made
                if only is not None and len(result) == len(only):
                    break
            _free(values, uses, node)
        result |= {self.names[node]: inputs[self.names[node]] for node in self.nodes
                   if node.op == "placeholder" and self.names[node] in kept}  # fmt: skip
        return result

    def _call(self, node: fx.Node, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not self.wide:
            return call(*args, **kwargs)
        if op_name(node.target).startswith("qpass."):
            with WideMeaning(torch.float32):
                return widened(call(*args, **kwargs), torch.float32)
        return widened(call(*args, **kwargs), torch.float32)


def _free(values: dict[fx.Node, Any], uses: Counter[fx.Node], node: fx.Node) -> None:
    for source in node.all_input_nodes:
        uses[source] -= 1
        if not uses[source]:
            values.pop(source, None)
    if not node.users:
        values.pop(node, None)


def _is_narrow(node: fx.Node) -> bool:
    found = [node.meta.get("val"), *(source.meta.get("val") for source in node.all_input_nodes)]
    return any(isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float32
               for value in found)  # fmt: skip


def _prepared(node: fx.Node, wide: bool, device: torch.device | None) -> tuple[Callable[..., Any], Any, Any]:
    """What to call, and with which arguments: those of a dialect op are run as its meaning, which autograd follows."""
    name = op_name(node.target)
    call: Any = ops.REGISTRY[name.removeprefix("qpass.")].meaning if name.startswith("qpass.") else node.target
    args, kwargs = node.args, dict(node.kwargs)
    if wide:
        args, kwargs = retyped(args, torch.float32), retyped(kwargs, torch.float32)
    if device is not None and kwargs.get("device") is not None:
        kwargs["device"] = device
    return call, args, kwargs


def _smoothed(node: fx.Node, args: Any, factor: Tensor) -> tuple[Any, ...]:
    place = _SMOOTH_AT.get(node.target)
    if place is None:
        raise VerifyError("only an activation can be smoothed", where=f"%{node.meta['name']}")
    have = args[place] if len(args) > place else None
    return (*args[:place], factor if have is None else have * factor)
