"""Does a pattern match at a node? Either a Match with its bindings, or a Mismatch with the reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qpass.graph.rule import Pattern
from qpass.graph.values import op_name

aten = torch.ops.aten
_COMMUTES = frozenset({aten.add.Tensor, aten.mul.Tensor})
_HALF = frozenset({torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Match:
    """Bound values by hole name, and the graph nodes that the pattern covers, the anchor last."""

    bindings: Mapping[str, Any]
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Mismatch:
    """Falsy. ``depth`` is how many nodes matched before the first that did not, to rank near misses."""

    reason: str
    depth: int = 0

    def __bool__(self) -> bool:
        return False


class _Failed(Exception):
    pass


class _Matcher:
    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.bound: dict[fx.Node, Any] = {}
        self.literals: dict[str, Any] = {}
        self.deepest = Mismatch("nothing matched")

    def fail(self, reason: str) -> _Failed:
        if len(self.bound) >= self.deepest.depth:
            self.deepest = Mismatch(reason, len(self.bound))
        return _Failed(reason)

    def value(self, want: Any, got: Any) -> None:
        """Match one argument: a hole, a node, a list, or a literal."""
        if isinstance(want, fx.Node):
            self.node(want, got)
        elif isinstance(want, list | tuple):
            if not isinstance(got, list | tuple) or len(want) != len(got):
                raise self.fail(f"expected {len(want)} values, found {got!r}")
            for one, two in zip(want, got):
                self.value(one, two)
        else:
            self.literal(want, got)

    def literal(self, want: Any, got: Any) -> None:
        hole = self.pattern.literals.get(want) if isinstance(want, int | float) and not isinstance(want, bool) else None
        if hole is not None and (isinstance(got, int | float) or _is_size(got)):
            if not _same_size(self.literals.setdefault(hole, got), got):
                raise self.fail(f"{hole} is {self.literals[hole]} in one place and {got} in another")
        elif want in _HALF if isinstance(want, torch.dtype) else False:
            if got not in _HALF or self.literals.setdefault("half_precision", got) != got:
                raise self.fail(f"expected one half-precision dtype, found {got}")
        elif type(want) is not type(got) or want != got:
            raise self.fail(f"expected the literal {want!r}, found {got!r}")

    def node(self, want: fx.Node, got: Any) -> None:
        if want in self.bound:
            if self.bound[want] is not got:
                raise self.fail(f"{want.name} must be one value, found two")
            return
        if want.op == "placeholder":
            if not isinstance(got, fx.Node):
                raise self.fail(f"expected a value for {want.name}, found the literal {got!r}")
            self.bound[want] = got
            return
        if not isinstance(got, fx.Node) or got.op != "call_function" or got.target is not want.target:
            raise self.fail(f"{_name(got)}: expected {op_name(want.target)}, found {_op(got)}")
        self.bound[want] = got
        self.arguments(want, got)

    def arguments(self, want: fx.Node, got: fx.Node) -> None:
        if len(want.args) != len(got.args) or want.kwargs.keys() != got.kwargs.keys():
            raise self.fail(f"{_name(got)}: {op_name(got.target)} has other arguments than the pattern")
        orders = [got.args]
        if want.target in _COMMUTES and len(got.args) == 2:
            orders.append((got.args[1], got.args[0]))
        for number, order in enumerate(orders):
            saved = dict(self.bound), dict(self.literals)
            try:
                self.value(want.args, order)
                for key, value in want.kwargs.items():
                    self.value(value, got.kwargs[key])
                return
            except _Failed:
                if number == len(orders) - 1:
                    raise
                self.bound, self.literals = saved


def match(pattern: Pattern, node: fx.Node) -> Match | Mismatch:
    """Match ``pattern`` with its anchor at ``node``. Literals are strict; inner values may have no other use."""
    matcher = _Matcher(pattern)
    try:
        matcher.node(pattern.root, node)
        _inner_uses(matcher, pattern)
    except _Failed:
        return matcher.deepest
    bindings: dict[str, Any] = {hole.name: got for hole, got in matcher.bound.items() if hole.op == "placeholder"}
    missing = [hole for hole in pattern.literals.values() if hole not in matcher.literals]
    if missing:
        return Mismatch(f"the literal {missing[0]} was not bound", len(matcher.bound))
    inner = [got for want, got in matcher.bound.items() if want.op == "call_function"]
    return Match({**bindings, **matcher.literals}, tuple(reversed(inner)))


def _inner_uses(matcher: _Matcher, pattern: Pattern) -> None:
    covered = set(matcher.bound.values())
    for want, got in matcher.bound.items():
        if want.op == "placeholder" or want is pattern.root:
            continue
        outside = [user for user in got.users if user not in covered]
        if outside:
            raise matcher.fail(f"{_name(got)} has {len(got.users)} uses, the pattern allows {len(want.users)}")


def _is_size(got: Any) -> bool:
    return isinstance(got, fx.Node) and isinstance(got.meta.get("val"), torch.SymInt)


def _same_size(one: Any, two: Any) -> bool:
    if isinstance(one, fx.Node) and isinstance(two, fx.Node):
        return bool(one.meta["val"].node.expr == two.meta["val"].node.expr)
    return bool(one == two)


def _name(got: Any) -> str:
    return str(got.meta.get("name", got.name)) if isinstance(got, fx.Node) else repr(got)


def _op(got: Any) -> str:
    if not isinstance(got, fx.Node):
        return f"the literal {got!r}"
    return op_name(got.target) if got.op == "call_function" else got.op
