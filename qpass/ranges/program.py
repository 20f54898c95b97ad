"""Bounds of every value of an INTEGER program, from its weights as they are; a proof that no integer wraps.

The length is a number T: bounds hold for 1 to T tokens, past and new. Caches are bounded by induction: what a call
writes to them, given what they held, is what was assumed that they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from qpass import ops
from qpass.errors import InputError, UnsupportedError, VerifyError
from qpass.graph.program import Program
from qpass.ranges.engine import Engine
from qpass.ranges.lookups import check_lookups, table_context
from qpass.ranges.nodes import (
    LEAST,
    SEQ,
    Extents,
    Unproven,
    assumed,
    called,
    held_meta,
    sizes_for,
    source_of,
    table_meta,
)
from qpass.ranges.report import Line, Ranges
from qpass.ranges.site import Seen, Site
from qpass.ranges.value import Value, hull, of, of_tensor

MOST_CONTEXT = 1 << 40
_ROUNDS, _STEP = 3, 1 << 16


@dataclass(frozen=True)
class _Walk:
    """One walk over the graph: what it saw of each op of each node, and what it says of the results."""

    seen: Mapping[str, dict[Site, Seen]]
    results: tuple[Value, ...]


def integer_ranges(program: Program, context: int | None = None) -> Ranges:
    """Bounds of every value and of every op inside the operators. ``print`` it for a table.

    Args:
        program: at stage INTEGER.
        context: tokens, past and new, for which the bounds hold; the recipe's ``context`` if None.

    Raises:
        UnsupportedError: an op that could wrap int8, int32 or int64, divide by zero, or shift by more than its bits
            within ``context`` tokens, with its bounds, its line in the operator and the line of the model that it came
            from; or an op whose bounds are not known; or weights outside of their format.
        InputError: something else than a program.
        VerifyError: the program is at another stage.
    """
    if not isinstance(program, Program):
        raise InputError(f"a {type(program).__name__} is no program",
                         fix='pass qpass.trace(model, recipe, until="INTEGER")["INTEGER"]')  # fmt: skip
    if program.stage != "INTEGER":
        raise VerifyError(f"bounds of a program at stage {program.stage}", fix='trace(..., until="INTEGER")["INTEGER"]')
    asked = program.call.context if context is None else context
    tensors: dict[str, Value] = {}
    check_formats(program, tensors)
    check_lookups(program, asked)
    try:
        seen = _settled(program, asked, tensors)
    except Unproven as error:
        raise _with_context(program, asked, tensors, error) from None
    lines = [Line(node, site, one) for node, sites in seen.items() for site, one in sites.items()]
    return Ranges(tuple(lines), asked, program)


def greatest_context(program: Program, least: int = LEAST, tensors: dict[str, Value] | None = None) -> int:
    """The most tokens for which nothing can wrap, at most 2^40. Raises UnsupportedError where ``least`` is too many."""
    tensors = {} if tensors is None else tensors
    _settled(program, least, tensors)
    good, bad = least, table_context(program, MOST_CONTEXT) + 1
    guess = _guess(program, tensors)
    for middle in (guess, guess + 1):
        if good < middle < bad:
            good, bad = (middle, bad) if _safe(program, middle, tensors) else (good, middle)
    while good < bad - 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _safe(program, middle, tensors) else (good, middle)
    return good


def _guess(program: Program, tensors: dict[str, Value]) -> int:
    """Where a straight line through the bounds at two lengths leaves its width; a place to begin, not a proof."""
    try:
        one, two = (_settled(program, length, tensors) for length in (_STEP, 2 * _STEP))
    except Unproven:
        return 0
    found = [MOST_CONTEXT]
    for node, sites in one.items():
        for site, seen in sites.items():
            grown = two[node][site].hi - seen.hi
            if grown > 0 and seen.width > 1:
                found.append(_STEP + ((1 << (seen.width - 1)) - 1 - seen.hi) * _STEP // grown)
    return min(found)


def _safe(program: Program, context: int, tensors: dict[str, Value]) -> bool:
    try:
        _settled(program, context, tensors)
    except Unproven:
        return False
    return True


def _with_context(program: Program, asked: int, tensors: dict[str, Value], error: Unproven) -> UnsupportedError:
    """The error, with the greatest context where a shorter one would do."""
    try:
        most = greatest_context(program, tensors=tensors)
    except Unproven:
        return error
    what = f"{asked} tokens, where nothing can wrap up to {most}: beyond it, {error.what}"
    return UnsupportedError(what, where=error.where, fix=f"use a context of at most {most} in the recipe")


def _settled(program: Program, context: int, tensors: dict[str, Value]) -> Mapping[str, dict[Site, Seen]]:
    """A walk whose caches hold what it writes to them: from an empty one, until nothing is added."""
    states = program.call.states
    past = max(context, LEAST) - SEQ
    held = {entry: of(0) for entry, _ in states}
    walk = _walk(program, 0, context, held, tensors)
    for _ in range(_ROUNDS):
        held = {entry: walk.results[leaves].plain() for entry, leaves in states}
        walk = _walk(program, past, context, held, tensors)
        if all(_within(walk.results[leaves], held[entry]) for entry, leaves in states):
            return walk.seen
    raise UnsupportedError("what a cache holds has no bound that stays", fix="use a recipe that is not integer-only")


def _within(value: Value, bound: Value) -> bool:
    joined = hull([value.plain(), bound])
    return (joined.lo, joined.hi, joined.parts) == (bound.lo, bound.hi, bound.parts)


def _walk(program: Program, past: int, context: int, held: Mapping[int, Value], tensors: dict[str, Value]) -> _Walk:
    engine, extents = Engine(), Extents(program, context)
    sizes = {**sizes_for(context), "past": past}
    known: dict[fx.Node, Any] = {}
    seen: dict[str, dict[Site, Seen]] = {}
    for number, node in enumerate(program.graph.nodes):
        if node.op == "placeholder":
            value = held.get(number) or assumed(program, number, node, context)
            known[node] = engine.hold(held_meta(program, node, sizes), value)
        elif node.op == "get_attr":
            name = str(node.target)
            if name not in tensors:
                tensors[name] = of_tensor(program.tensor(name))
            known[node] = engine.hold(table_meta(program, name, context), tensors[name])
        elif node.op == "output":
            return _Walk(seen, tuple(engine.look(known[arg]) for arg in node.args[0]))
        else:
            known[node] = called(engine, program, node, known, extents)
            seen[node.meta["name"]] = engine.seen
            engine.seen = {}
    raise VerifyError("a graph without an output")


def check_formats(program: Program, tensors: dict[str, Value]) -> None:
    """Raise UnsupportedError for codes of a weight that its format does not have."""
    for node in program.nodes(ops.integer_linear):
        codes = node.args[4]
        assert isinstance(codes, fx.Node)
        name = str(codes.target)
        tensors[name] = value = of_tensor(program.tensor(name))
        plans = [user.meta["plan"] for user in node.users if "plan" in user.meta]
        for fmt in [plan.scheme.weight for plan in plans[:1]]:
            most = (1 << (fmt.bits - 1)) - 1
            if value.hi > most or value.lo < -most - fmt.full:
                what = f"codes {value.lo} to {value.hi} in {name}, which {fmt} does not have"
                raise UnsupportedError(what, where=source_of(node), fix="write the codes that the format has")
