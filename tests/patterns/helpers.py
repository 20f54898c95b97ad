"""The three tests of a rule: the change it makes, equal numbers, and the reason of a near miss."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qpass.capture.normalise import normalise
from qpass.graph.match import Mismatch
from qpass.graph.program import Program
from qpass.graph.rewrite import find
from qpass.graph.show import show
from qpass.passes.raise_ops import raise_ops
from qpass.patterns import rules
from qpass.stages import check
from tests.tiny import traced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def change(function: Callable[..., Any], *inputs: Tensor, symbolic: bool = False, **weights: Tensor) -> str:
    """The lines that raising removes and adds."""
    before = normalise(traced(function, *inputs, symbolic=symbolic, **weights))
    texts = [show(program, params=False).splitlines()[1:] for program in (before, check(raise_ops(before)))]
    lines = list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:]
    return "\n".join(line for line in lines if not line.startswith("@@")) + "\n"


def equal(op: Any, function: Callable[..., Any], *shapes: tuple[int, ...], **weights: tuple[int, ...]) -> None:
    """Raising makes ``op`` in every dtype, and changes no bit of the result."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        inputs = [torch.randn(shape).to(dtype) for shape in shapes]
        tensors = {name: torch.randn(shape).to(dtype) for name, shape in weights.items()}
        before = traced(function, *inputs, **tensors)
        after = raise_ops(normalise(before))
        assert [node.target for node in after.nodes(op)] == [op], show(after)
        for one, two in zip(before.run(*inputs), after.run(*inputs)):
            assert one.dtype == two.dtype
            assert torch.equal(one, two), dtype


def reason(rule_name: str, function: Callable[..., Any], *inputs: Tensor, **weights: Tensor) -> str:
    """Why a rule does not match at the last value that it could end in."""
    return stopped(rule_name, normalise(traced(function, *inputs, **weights)))


def stopped(rule_name: str, program: Program) -> str:
    """The mismatch of a rule at the last value it could end in; the rule matches nowhere."""
    (rule,) = [rule for rule in rules() if rule.name == rule_name]
    roots = {pattern.root.target for pattern in rule.patterns()}
    found = [find(rule, node) for node in program.nodes() if node.target in roots]
    assert found, f"nothing that {rule_name} could end in"
    assert all(isinstance(one, Mismatch) for one in found), f"{rule_name} matches"
    return found[-1].reason
