"""Bounds of every value of an INTEGER program, from its weights as they are; a proof that no integer wraps.

The length is a number T: bounds hold for 1 to T tokens, past and new. Caches are bounded by induction: what a call
writes to them, given what they held, is what was assumed that they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import UnsupportedError, VerifyError
from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.ranges.engine import Engine, Overflow, Seen, Site, Wraps
from qpass.ranges.report import Line, Ranges
from qpass.ranges.value import Value, hull, of, of_tensor

MOST_CONTEXT = 1 << 40
_SEQ, _LEAST, _ROUNDS = 3, 4, 3
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
        seen, results = _settled(program, asked, tensors)
    except Unproven as error:
        raise _with_context(program, asked, tensors, error) from None
    lines = [Line(node, site, one) for node, sites in seen.items() for site, one in sites.items()]
    return Ranges(tuple(lines), asked, program)


def greatest_context(program: Program, least: int = _LEAST, tensors: dict[str, Value] | None = None) -> int:
    """The most tokens for which nothing can wrap, at most 2^40. Raises UnsupportedError where ``least`` is too many."""
    tensors = {} if tensors is None else tensors
    _settled(program, least, tensors)
    power, over = least.bit_length() - 1, MOST_CONTEXT.bit_length()
    while power < over - 1:  # first the power of two
        middle = (power + over) // 2
        power, over = (middle, over) if _safe(program, 1 << middle, tensors) else (power, middle)
    good, bad = max(least, 1 << power), min(1 << over, MOST_CONTEXT + 1)
    while good < bad - 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _safe(program, middle, tensors) else (good, middle)
    return good


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
    return UnsupportedError(what, where=error.where, fix=f'use a context of at most {most} in the recipe')


def _settled(program: Program, context: int, tensors: dict[str, Value]) -> tuple[Mapping[str, dict[Site, Seen]], Any]:
    """A walk whose caches hold what it writes to them: from an empty one, until nothing is added."""
    states = program.call.states
    past = max(context, _LEAST) - _SEQ
    held = {entry: of(0) for entry, _ in states}
    walk = _walk(program, 0, context, held, tensors)
    for _ in range(_ROUNDS):
        held = {entry: walk.results[leaves].plain() for entry, leaves in states}
        walk = _walk(program, past, context, held, tensors)
        if all(_within(walk.results[leaves], held[entry]) for entry, leaves in states):
            return walk.seen, walk.results
    raise UnsupportedError("what a cache holds has no bound that stays", fix="use a recipe that is not integer-only")


def _within(value: Value, bound: Value) -> bool:
    joined = hull([value.plain(), bound])
    return (joined.lo, joined.hi, joined.parts) == (bound.lo, bound.hi, bound.parts)


def _walk(program: Program, past: int, context: int, held: Mapping[int, Value], tensors: dict[str, Value]) -> _Walk:
    engine = Engine()
    sizes = {**_SIZES, "past": past}
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
            known[node] = _called(engine, node, known)
            seen[node.meta["name"]] = engine.seen
            engine.seen = {}
    raise VerifyError("a graph without an output")


def _called(engine: Engine, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """The result of a node: the meaning of a dialect op, any other op as it is."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: known[arg])
    kwargs = {name: torch.device("meta") if name == "device" else value for name, value in kwargs.items()}
    name = op_name(node.target).removeprefix("qpass.")
    fn = ops.REGISTRY[name].meaning if name in ops.REGISTRY else node.target
    try:
        return engine.run(lambda: fn(*args, **kwargs))
    except Wraps as error:
        raise Unproven(_words(node, error.found), where=source_of(node),
                       fix="use fewer bits or a narrower layer, or keep it out of the integer-only recipe") from None  # fmt: skip


def _words(node: fx.Node, found: Overflow) -> str:
    return f"{op_name(node.target)} could wrap: {found.what} at {found.site}"


def source_of(node: fx.Node) -> str:
    """A node's value name, and the line of the user's model that it came from."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    return f"%{node.meta.get('name', node.name)}" + (f", {lines[-1]}" if lines else "")


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
