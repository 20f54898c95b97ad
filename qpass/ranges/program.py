"""Bounds of every value of an INTEGER program, from its weights as they are; a proof that no integer wraps.

The length is a number T: bounds hold for 1 to T tokens, past and new. Caches are bounded by induction: what a call
writes to them, given what they held, is what was assumed that they hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import UnsupportedError, VerifyError
from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.ranges.arithmetic import rule_of
from qpass.ranges.engine import Engine, Seen, Site, Wraps
from qpass.ranges.report import Line, Ranges
from qpass.ranges.value import Value, hull, of, of_tensor

MOST_CONTEXT = 1 << 40
_RANGES = (torch.ops.aten.arange.default, torch.ops.aten.arange.start)
_SEQ, _LEAST, _ROUNDS, _STEP = 3, 4, 3, 1 << 16
_SIZES = {"batch": 2, "seq": _SEQ, "keep": 2}


class Unproven(UnsupportedError):
    """An op that could wrap, or do worse."""


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
        VerifyError: the program is at another stage.
    """
    if program.stage != "INTEGER":
        raise VerifyError(f"bounds of a program at stage {program.stage}", fix='trace(..., until="INTEGER")["INTEGER"]')
    asked = program.call.context if context is None else context
    tensors: dict[str, Value] = {}
    check_formats(program, tensors)
    try:
        seen = _settled(program, asked, tensors)
    except Unproven as error:
        raise _with_context(program, asked, tensors, error) from None
    lines = [Line(node, site, one) for node, sites in seen.items() for site, one in sites.items()]
    return Ranges(tuple(lines), asked, program)


def greatest_context(program: Program, least: int = _LEAST, tensors: dict[str, Value] | None = None) -> int:
    """The most tokens for which nothing can wrap, at most 2^40. Raises UnsupportedError where ``least`` is too many."""
    tensors = {} if tensors is None else tensors
    _settled(program, least, tensors)
    good, bad = least, MOST_CONTEXT + 1
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
    past = max(context, _LEAST) - _SEQ
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
    engine = Engine(context)
    sizes = {**_SIZES, "past": past}
    extents = _Extents(program, context)
    known: dict[fx.Node, Any] = {}
    seen: dict[str, dict[Site, Seen]] = {}
    for number, node in enumerate(program.graph.nodes):
        if node.op == "placeholder":
            value = held.get(number) or _assumed(program, number, node, context)
            known[node] = engine.hold(_meta(program, node, sizes), value)
        elif node.op == "get_attr":
            name = str(node.target)
            if name not in tensors:
                tensors[name] = of_tensor(program.tensor(name))
            like = program.like(name)
            known[node] = engine.hold(torch.empty(like.shape, dtype=like.dtype, device="meta"), tensors[name])
        elif node.op == "output":
            return _Walk(seen, tuple(engine.look(known[arg]) for arg in node.args[0]))
        else:
            known[node] = _called(engine, node, known, extents)
            seen[node.meta["name"]] = engine.seen
            engine.seen = {}
    raise VerifyError("a graph without an output")


class _Extents:
    """Bounds of the sizes that a graph computes with, where ``_walk`` has one size of each."""

    def __init__(self, program: Program, context: int) -> None:
        self.dims = program.dims
        self.most = {"batch": (1 << 31) - 1, "seq": context, "past": context, "keep": context}

    def of(self, size: Any) -> Value:
        """Of a SymInt or an int; sizes are sums of dims, so that the ends are at the corners."""
        if isinstance(size, int):
            return of(size)
        expression = size.node.expr
        ends = [0]
        for symbol in expression.free_symbols:
            factor = int(expression.coeff(symbol))
            ends.append(factor * self.most[self.dims[str(symbol)]])
        rest = int(expression.subs(dict.fromkeys(expression.free_symbols, 0)))
        return of(rest + sum(min(end, 0) for end in ends), rest + sum(max(end, 0) for end in ends))


def _called(engine: Engine, node: fx.Node, known: Mapping[fx.Node, Any], extents: _Extents) -> Any:
    """The result of a node: the meaning of a dialect op, any other op as it is."""
    pointwise = rule_of(op_name(node.target).split(".")[-1]) is not None and isinstance(node.meta.get("val"), Tensor)

    def operand(arg: fx.Node) -> Any:
        if pointwise and isinstance(known[arg], int):  # a size that is computed with
            return engine.hold(torch.empty((), dtype=torch.int64, device="meta"), extents.of(arg.meta["val"]))
        return known[arg]

    args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
    kwargs = {name: torch.device("meta") if name == "device" else value for name, value in kwargs.items()}
    name = op_name(node.target).removeprefix("qpass.")
    fn: Any = ops.REGISTRY[name].meaning if name in ops.REGISTRY else node.target
    try:
        result = engine.run(lambda: fn(*args, **kwargs))
        if node.target in _RANGES:
            ends = [extents.of(arg.meta["val"] if isinstance(arg, fx.Node) else arg) for arg in node.args]
            start, end = ends if len(ends) == 2 else (of(0), ends[0])
            value = of(start.lo, max(start.lo, end.hi - 1))
            engine.hold(result, value)
            engine.seen = {site: Seen(value.lo, value.hi, site.width) for site in engine.seen}
        return result
    except Wraps as error:
        what = f"{op_name(node.target)} could wrap: {error.found.what} at {error.found.site}"
        raise Unproven(what, where=source_of(node), fix="use fewer bits for it, or a narrower layer") from None


def source_of(node: fx.Node) -> str:
    """A node's value name, and the line of the user's model that it came from."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    own = [line for line in lines if f"{os.sep}torch{os.sep}nn{os.sep}" not in line] or lines
    return f"%{node.meta.get('name', node.name)}" + (f", {own[-1]}" if own else "")


def _meta(program: Program, node: fx.Node, sizes: Mapping[str, int]) -> Tensor:
    value = node.meta["val"]
    shape = [size if isinstance(size, int) else _size(program, size, sizes) for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _size(program: Program, size: Any, sizes: Mapping[str, int]) -> int:
    expression = size.node.expr
    return int(expression.subs({symbol: sizes[program.dims[str(symbol)]] for symbol in expression.free_symbols}))


def _assumed(program: Program, number: int, node: fx.Node, context: int) -> Value:
    """What the call convention checks of an input before anything runs."""
    name = program.call.inputs[number].name
    bounds = {"attention_mask": (0, 1), "position_ids": (0, context - 1), "keep": (0, context - 1),
              "input_ids": (0, (1 << 31) - 1)}  # fmt: skip
    info = torch.iinfo(node.meta["val"].dtype)
    return of(*bounds.get(name, (info.min, info.max)))


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
