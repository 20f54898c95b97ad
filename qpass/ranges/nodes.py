"""One node of a program on bounds: what is assumed of inputs and sizes, and what is said of a node that fails."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.graph.values import op_name
from qpass.ranges.arithmetic import rule_of
from qpass.ranges.engine import Engine
from qpass.ranges.site import Beyond, Seen, Wraps
from qpass.ranges.value import Value, of

SEQ, LEAST = 3, 4
"""New tokens, and the fewest tokens at all, that a graph is walked for."""
_SIZES = {"batch": 2, "seq": SEQ, "keep": 2}
_RANGES = (torch.ops.aten.arange.default, torch.ops.aten.arange.start)
_ANY = (1 << 31) - 1


class Unproven(UnsupportedError):
    """An op that could wrap, or do worse."""


class Extents:
    """Bounds of the sizes that a graph computes with, where a walk has one size of each: past + new <= context."""

    def __init__(self, program: Program, context: int) -> None:
        self.dims, self.context = program.dims, context

    def of(self, size: Any) -> Value:
        """Of a SymInt or an int; sizes are sums of dims, so that the ends are at the corners."""
        if isinstance(size, int):
            return of(size)
        expression = size.node.expr
        factors = {self.dims[str(symbol)]: int(expression.coeff(symbol)) for symbol in expression.free_symbols}
        tokens = [0, *(factors.pop(name, 0) for name in ("seq", "past"))]
        low, high = min(tokens) * self.context, max(tokens) * self.context
        for name, factor in factors.items():
            end = factor * (self.context if name == "keep" else _ANY)
            low, high = low + min(end, 0), high + max(end, 0)
        rest = int(expression.subs(dict.fromkeys(expression.free_symbols, 0)))
        return of(rest + low, rest + high)


def sizes_for(context: int) -> dict[str, int]:
    """The sizes of a walk whose tokens, past and new, are ``context``."""
    return {**_SIZES, "past": max(context, LEAST) - SEQ}


def called(engine: Engine, program: Program, node: fx.Node, known: Mapping[fx.Node, Any], extents: Extents) -> Any:
    """The result of a node: the meaning of a dialect op, any other op as it is. Raises Unproven."""
    pointwise = rule_of(op_name(node.target).split(".")[-1]) is not None and isinstance(node.meta.get("val"), Tensor)

    def operand(arg: fx.Node) -> Any:
        if pointwise and isinstance(known[arg], int):  # a size that is computed with
            return engine.hold(torch.empty((), dtype=torch.int64, device="meta"), extents.of(arg.meta["val"]))
        return known[arg]

    args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
    kwargs = {name: torch.device("meta") if name == "device" else value for name, value in kwargs.items()}
    name = op_name(node.target).removeprefix("qpass.")
    fn: Any = ops.REGISTRY[name].meaning if name in ops.REGISTRY else node.target
    engine.count = _count(node, extents)
    try:
        result = engine.run(lambda: fn(*args, **kwargs))
    except Beyond as error:
        raise Unproven(_beyond(program, node, error), where=source_of(node), fix="use a shorter context") from None
    except Wraps as error:
        what = f"{op_name(node.target)} could wrap: {error.found.what} at {error.found.site}"
        raise Unproven(what, where=source_of(node), fix="use fewer bits for it, or a narrower layer") from None
    if node.target in _RANGES:
        ends = [extents.of(arg.meta["val"] if isinstance(arg, fx.Node) else arg) for arg in node.args]
        start, end = ends if len(ends) == 2 else (of(0), ends[0])
        value = of(start.lo, max(start.lo, end.hi - 1))
        engine.hold(result, value)
        engine.seen = {site: Seen(value.lo, value.hi, site.width) for site in engine.seen}
    return result


def _count(node: fx.Node, extents: Extents) -> int | None:
    """The most elements that a sum or a running sum outside of the operators adds; None for another op."""
    name = op_name(node.target).split(".")[-1]
    if name not in ("sum", "cumsum") or not isinstance(node.args[0], fx.Node):
        return None
    shape = node.args[0].meta["val"].shape
    given: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    dims: list[int] = [given] if isinstance(given, int) else list(given)
    ends: list[int] = [extents.of(shape[dim]).hi for dim in dims]
    return math.prod(max(end, 1) for end in ends)


def _beyond(program: Program, node: fx.Node, error: Beyond) -> str:
    tables = [str(arg.target) for arg in node.all_input_nodes if arg.op == "get_attr"]
    table = next((name for name in tables if program.like(name).shape[:1] == (error.rows,)), "a table")
    return f"{op_name(node.target)} could look up rows {error.lo} to {error.hi} of {table}, which has {error.rows}"


def source_of(node: fx.Node) -> str:
    """A node's value name, and the line of the user's model that it came from."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    own = [line for line in lines if f"{os.sep}torch{os.sep}nn{os.sep}" not in line] or lines
    return f"%{node.meta.get('name', node.name)}" + (f", {own[-1]}" if own else "")


def held_meta(program: Program, node: fx.Node, sizes: Mapping[str, int]) -> Tensor:
    """A meta tensor of an input's shape and dtype, with those sizes."""
    value = node.meta["val"]
    shape = [size if isinstance(size, int) else _size(program, size, sizes) for size in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _size(program: Program, size: Any, sizes: Mapping[str, int]) -> int:
    expression = size.node.expr
    return int(expression.subs({symbol: sizes[program.dims[str(symbol)]] for symbol in expression.free_symbols}))


def table_meta(program: Program, name: str, context: int) -> Tensor:
    """A meta tensor of a parameter's shape; tables that are made for the recipe's context are as long as it is here."""
    like, shape = program.like(name), tuple(program.like(name).shape)
    if is_made(program, name):
        shape = (context, *shape[1:])
    return torch.empty(shape, dtype=like.dtype, device="meta")


def is_made(program: Program, name: str) -> bool:
    """Whether ``integerise`` has made a parameter with a row for every position of the context."""
    like = program.like(name)
    return name.startswith("integer.") and like.dim() == 2 and like.shape[0] == program.call.context


def assumed(program: Program, number: int, node: fx.Node, context: int) -> Value:
    """What the call convention checks of an input before anything runs."""
    call = program.call
    name = call.inputs[number].name
    bounds = {"attention_mask": (0, 1), "position_ids": (call.least_position, context - 1),
              "keep": (-context, context - 1), "input_ids": (0, (call.vocabulary or _ANY) - 1)}  # fmt: skip
    info = torch.iinfo(node.meta["val"].dtype)
    return of(*bounds.get(name, (info.min, info.max)))
