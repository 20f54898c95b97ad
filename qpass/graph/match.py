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


_Goals = tuple[tuple[Any, Any, Any], ...]


class _Failed(Exception):
    pass


class _Matcher:
    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.bound: dict[fx.Node, Any] = {}
        self.literals: dict[str, Any] = {}
        self.deepest = Mismatch("nothing matched", -1)

    def fail(self, reason: str) -> _Failed:
        if len(self.bound) > self.deepest.depth:
            self.deepest = Mismatch(reason, len(self.bound))
        return _Failed(reason)

    def solve(self, goals: _Goals) -> None:
        """Bind every (wanted, found, argument of) of ``goals``, in order; where an op commutes, try both orders."""
        while goals:
            (want, got, owner), goals = goals[0], goals[1:]
            if isinstance(want, list | tuple):
                if not isinstance(got, list | tuple) or len(want) != len(got):
                    raise self.fail(f"{_name(owner)}: expected a list of {len(want)}, found {_describe(got)}")
                goals = (*((one, two, owner) for one, two in zip(want, got)), *goals)
            elif not isinstance(want, fx.Node):
                self.literal(want, got, owner)
            elif not self.seen(want, got):
                self.bind(want, got)
                if want.op == "call_function":
                    straight, swapped = _arguments(want, got)
                    if swapped and self.succeeds((*straight, *goals)):
                        return
                    goals = (*(swapped or straight), *goals)

    def succeeds(self, goals: _Goals) -> bool:
        """Solve ``goals`` if they can be; if not, leave the bindings as they were."""
        saved = dict(self.bound), dict(self.literals)
        try:
            self.solve(goals)
        except _Failed:
            self.bound, self.literals = saved
            return False
        return True

    def literal(self, want: Any, got: Any, owner: Any) -> None:
        hole = self.pattern.literals.get(want) if isinstance(want, int | float) and not isinstance(want, bool) else None
        if hole is not None and (isinstance(got, int | float) or _is_size(got)):
            if not _same_size(self.literals.setdefault(hole, got), got):
                raise self.fail(f"{_name(owner)}: {hole} is {got}, and {self.literals[hole]} elsewhere")
        elif want in _HALF if isinstance(want, torch.dtype) else False:
            if got not in _HALF or self.literals.setdefault("half_precision", got) != got:
                raise self.fail(f"{_name(owner)}: expected one half-precision dtype, found {got}")
        elif type(want) is not type(got) or want != got:
            raise self.fail(f"{_name(owner)}: expected the literal {want!r}, found {_describe(got)}")

    def seen(self, want: fx.Node, got: Any) -> bool:
        if want in self.bound and self.bound[want] is not got:
            raise self.fail(f"{want.name} must be one value, found {_name(self.bound[want])} and {_name(got)}")
        return want in self.bound

    def bind(self, want: fx.Node, got: Any) -> None:
        if want.op == "placeholder":
            if not isinstance(got, fx.Node):
                raise self.fail(f"expected a value for {want.name}, found the literal {got!r}")
        elif not isinstance(got, fx.Node) or got.op != "call_function" or got.target is not want.target:
            raise self.fail(f"{_name(got)}: expected {op_name(want.target)}, found {_op(got)}")
        elif len(want.args) != len(got.args) or want.kwargs.keys() != got.kwargs.keys():
            raise self.fail(f"{_name(got)}: {op_name(got.target)} has other arguments than the pattern")
        elif self.pattern.typed and want is not self.pattern.root and not _same_type(want, got):
            raise self.fail(f"{_name(got)} is {_dtype(got)}, the pattern computes it in {_dtype(want)}")
        self.bound[want] = got


def match(pattern: Pattern, node: fx.Node) -> Match | Mismatch:
    """Match ``pattern`` with its anchor at ``node``. Literals are strict; inner values may have no other use."""
    matcher = _Matcher(pattern)
    try:
        matcher.solve(((pattern.root, node, node),))
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


def _dtype(node: fx.Node) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _same_type(want: fx.Node, got: fx.Node) -> bool:
    """A pattern that casts is exact only between the types it was traced with; bfloat16 stands for both halves."""
    one, two = _dtype(want), _dtype(got)
    return one == two or (one in _HALF and two in _HALF)


def _is_size(got: Any) -> bool:
    return isinstance(got, fx.Node) and isinstance(got.meta.get("val"), torch.SymInt)


def _same_size(one: Any, two: Any) -> bool:
    if isinstance(one, fx.Node) and isinstance(two, fx.Node):
        return bool(one.meta["val"].node.expr == two.meta["val"].node.expr)
    return bool(one == two)


def _name(got: Any) -> str:
    return str(got.meta.get("name", got.name)) if isinstance(got, fx.Node) else repr(got)


def _arguments(want: fx.Node, got: fx.Node) -> tuple[_Goals, _Goals]:
    """The goals of a call's arguments, and those with the first two swapped if the op commutes."""
    named = tuple((value, got.kwargs[key], got) for key, value in want.kwargs.items())
    straight = tuple((one, two, got) for one, two in zip(want.args, got.args))
    if want.target not in _COMMUTES or len(got.args) != 2:
        return (*straight, *named), ()
    swapped = tuple((one, two, got) for one, two in zip(want.args, reversed(got.args)))
    return (*straight, *named), (*swapped, *named)


def _describe(got: Any) -> str:
    if isinstance(got, list | tuple):
        return f"a list of {len(got)}"
    return _name(got) if isinstance(got, fx.Node) else repr(got)


def _op(got: Any) -> str:
    if not isinstance(got, fx.Node):
        return f"the literal {got!r}"
    return op_name(got.target) if got.op == "call_function" else got.op
