"""Run two programs side by side and meet at every value that both have by name, holding as little as possible."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import InputError
from qpass.graph.program import Program


def lockstep(one: Program, two: Program, inputs: Sequence[Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (value name, its tensor in ``one``, in ``two``) for the calls that both have, in the order of ``one``."""
    shared = {node.meta["name"] for node in one.nodes()} & {node.meta["name"] for node in two.nodes()}
    early: dict[str, Any] = {}
    others = _values(two, inputs, shared)
    for name, value in _values(one, inputs, shared):
        while name not in early:
            other, found = next(others)
            early[other] = found
        match = early.pop(name)
        if isinstance(value, Tensor) and isinstance(match, Tensor):
            yield name, value, match


def _values(program: Program, inputs: Sequence[Any], names: set[str]) -> Iterator[tuple[str, Any]]:
    """Run ``program`` node by node; yield the calls in ``names``; free each value after its last use."""
    expected = len(program.placeholders())
    if len(inputs) != expected:
        raise InputError(f"the program takes {expected} flat inputs, got {len(inputs)}")
    uses = Counter({node: len(node.users) for node in program.graph.nodes})
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "output":
            return
        values[node] = next(given) if node.op == "placeholder" else _compute(program, node, values)
        uses.subtract(node.all_input_nodes)
        for source in node.all_input_nodes:
            if not uses[source]:
                del values[source]
        if node.op == "call_function" and node.meta["name"] in names:
            yield node.meta["name"], values[node]
        if not node.users:
            del values[node]


def _compute(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return program.tensor(str(node.target))
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    call: Any = node.target
    with torch.no_grad():
        return call(*args, **kwargs)


def sqnr_db(value: Tensor, other: Tensor) -> float:
    """Signal to noise of ``other`` against ``value``, 10 log10(|a|² / |a - b|²), in float64; inf when equal."""
    if value.shape != other.shape:
        return -math.inf
    one, two = value.detach().to(torch.float64), other.detach().to(torch.float64)
    same = (one == two) | (one.isnan() & two.isnan())
    noise = float(torch.where(same, 0.0, one - two).square().sum())
    signal = float(torch.where(same & ~one.isfinite(), 0.0, one).square().sum())
    if noise == 0:
        return math.inf
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def max_abs(value: Tensor, other: Tensor) -> float:
    """The largest absolute difference; inf when the shapes differ, 0 where both are the same infinity or NaN."""
    if value.shape != other.shape:
        return math.inf
    one, two = value.detach().to(torch.float64), other.detach().to(torch.float64)
    same = (one == two) | (one.isnan() & two.isnan())
    gap = torch.where(same, 0.0, (one - two).abs())
    return float(gap.nan_to_num(nan=math.inf).max()) if gap.numel() else 0.0
