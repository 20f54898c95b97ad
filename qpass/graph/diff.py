"""What a pass did to a program: counts, bytes, accuracy, and the text of the change."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qpass.graph.lockstep import lockstep, max_abs, sqnr_db
from qpass.graph.program import Derived, Program
from qpass.graph.show import is_symbolic, show
from qpass.graph.values import op_name


@dataclass(frozen=True)
class Summary:
    """The numbers of a diff.

    Attributes:
        ops: calls before and after, sizes not counted.
        added, removed: calls by kind that one side has more of.
        changed, added_params, removed_params: parameter names.
        param_bytes: size of all parameters that the graph reads, before and after.
        worst: value name and SQNR in dB of the shared value that moved most; None without inputs, or if all are equal.
        output_error: largest absolute error of each output; None without inputs.
    """

    ops: tuple[int, int]
    added: Mapping[str, int]
    removed: Mapping[str, int]
    changed: tuple[str, ...]
    added_params: tuple[str, ...]
    removed_params: tuple[str, ...]
    param_bytes: tuple[int, int]
    worst: tuple[str, float] | None = None
    output_error: tuple[float, ...] | None = None

    def __str__(self) -> str:
        lines = [f"ops {self.ops[0]} -> {self.ops[1]}"]
        kinds = [f"+{count} {kind}" for kind, count in self.added.items()]
        kinds += [f"-{count} {kind}" for kind, count in self.removed.items()]
        lines += [f"kinds {', '.join(kinds)}"] if kinds else []
        names = [("changed", self.changed), ("added", self.added_params), ("removed", self.removed_params)]
        counts = ", ".join(f"{len(which)} {what}" for what, which in names if which)
        lines.append(f"parameters {counts or 'unchanged'}, {self.param_bytes[0]} -> {self.param_bytes[1]} bytes")
        if self.output_error is not None:
            lines.append("worst SQNR " + (f"{self.worst[1]:.1f} dB at %{self.worst[0]}" if self.worst else "inf"))
            lines.append(f"output max abs error {', '.join(f'{error:.3g}' for error in self.output_error)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Diff:
    """Prints as ``text``: the summary, then a unified diff of the two programs with repeated layers folded."""

    summary: Summary
    text: str
    equal: bool

    def __str__(self) -> str:
        return self.text


def diff(before: Program, after: Program, *, inputs: Sequence[Any] | None = None) -> Diff:
    """Compare two programs.

    Args:
        before: the program a pass got.
        after: the program it gave.
        inputs: flat example inputs; with them both programs run, and the summary has their distance.
    """
    summary = _summary(before, after, inputs)
    old, new = show(before), show(after)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), before.stage, after.stage, n=1, lineterm="")
    parameters = (*summary.changed, *summary.added_params, *summary.removed_params)
    return Diff(summary, "\n".join([str(summary), *lines]) + "\n", old == new and not parameters)


def _summary(before: Program, after: Program, inputs: Sequence[Any] | None) -> Summary:
    old, new = _kinds(before), _kinds(after)
    olds, news = before.used_params(), after.used_params()
    worst, errors = _distance(before, after, inputs) if inputs is not None else (None, None)
    return Summary(
        ops=(old.total(), new.total()),
        added=dict(sorted((new - old).items())),
        removed=dict(sorted((old - new).items())),
        changed=tuple(name for name in olds if name in after.params and name in news and _differs(before, after, name)),
        added_params=tuple(name for name in news if name not in olds),
        removed_params=tuple(name for name in olds if name not in news),
        param_bytes=(_bytes(before), _bytes(after)),
        worst=worst,
        output_error=errors,
    )


def _kinds(program: Program) -> Counter[str]:
    return Counter(op_name(node.target) for node in program.nodes() if not is_symbolic(node))


def _bytes(program: Program) -> int:
    return sum(like.numel() * like.element_size() for like in map(program.like, program.used_params()))


def _differs(before: Program, after: Program, name: str) -> bool:
    """Whether a parameter's content differs; shared tensors are not read."""
    one, two = before.params[name], after.params[name]
    if one is two and not isinstance(one, Derived):
        return False
    old, new = before.tensor(name), after.tensor(name)
    return old.dtype != new.dtype or not _same_content(old, new)


def _same_content(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.is_meta or two.is_meta:
        return one.shape == two.shape and one.is_meta and two.is_meta
    flat, other = (tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (one, two))
    return torch.equal(flat, other)


def _distance(
    before: Program, after: Program, inputs: Sequence[Any]
) -> tuple[tuple[str, float] | None, tuple[float, ...]]:
    worst: tuple[str, float] | None = None
    for name, one, two in lockstep(before, after, inputs):
        found = sqnr_db(one, two)
        if found < (worst[1] if worst else math.inf):
            worst = (name, found)
    with torch.no_grad():
        pairs = zip(_tensors(before.run(*inputs)), _tensors(after.run(*inputs)))
        return worst, tuple(max_abs(one, two) for one, two in pairs)


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for item in outputs for tensor in _tensors(item)] if isinstance(outputs, list | tuple) else []
