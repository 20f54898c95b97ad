"""Rows of tables that a program looks up: token ids, learned positions, cos and sin. Each must be there.

What indices are made of is a few ops on integers, so the most tokens that a table has rows for are found without a walk
over the operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.graph.program import Program
from qpass.graph.values import ancestors
from qpass.ranges.engine import Engine
from qpass.ranges.nodes import (
    Extents,
    Unproven,
    assumed,
    called,
    held_meta,
    is_made,
    sizes_for,
    source_of,
    table_meta,
)
from qpass.ranges.value import Value, of_tensor

Lookup = tuple[fx.Node, str, fx.Node]
"""The node, the name of its table, and the indices."""


def lookups(program: Program) -> Iterator[Lookup]:
    """Every look-up of rows of a parameter."""
    for node in program.nodes(ops.integer_embedding, torch.ops.aten.index.Tensor):
        table, index = (node.args[1], node.args[0]) if node.target is ops.integer_embedding else node.args[:2]
        index = [part for part in index if part is not None] if isinstance(index, list | tuple) else [index]
        if not isinstance(table, fx.Node) or table.op != "get_attr" or len(index) != 1:
            continue
        if isinstance(index[0], fx.Node) and index[0].meta["val"].dtype != torch.bool:
            yield node, str(table.target), index[0]


def check_lookups(program: Program, context: int) -> None:
    """Raise Unproven, with the table and the context that it has rows for, where an index could leave its table."""
    for node, name, index in lookups(program):
        rows = context if is_made(program, name) else int(program.like(name).shape[0])
        reach = _bounds(program, index, context)
        if -rows <= reach.lo and reach.hi < rows:
            continue
        what = f"positions reach rows {reach.lo} to {reach.hi} of {name}, which has {rows}"
        most = _most(program, (node, name, index), context)
        if not most:
            raise Unproven(what, where=source_of(node), fix="use a recipe that is not integer-only for this model")
        held = f"{rows - most} of them before position 0, so it has {most} positions" if rows > most else "no more"
        raise Unproven(f"{what} ({held}), and the context is {context}", where=source_of(node),
                       fix=f'use {{"integer": {{"context": {most}}}}} or less in the recipe')  # fmt: skip


def table_context(program: Program, context: int) -> int:
    """The most tokens, up to ``context``, that every table has rows for; 0 where one token is too many."""
    return min((_most(program, found, context) for found in lookups(program)), default=context)


def _most(program: Program, lookup: Lookup, context: int) -> int:
    _, name, index = lookup
    if is_made(program, name):
        return context
    rows, good, bad = int(program.like(name).shape[0]), 0, context + 1
    middle = context  # most tables are long enough
    while good < bad - 1:
        reach = _bounds(program, index, middle)
        good, bad = (middle, bad) if -rows <= reach.lo and reach.hi < rows else (good, middle)
        middle = (good + bad) // 2
    return good


def _bounds(program: Program, index: fx.Node, context: int) -> Value:
    """Bounds of indices for 1 to ``context`` tokens. Raises UnsupportedError where they hang on more than inputs."""
    engine, extents, sizes = Engine(), Extents(program, context), sizes_for(context)
    needed, known = ancestors(index), dict[fx.Node, Any]()
    for number, node in enumerate(program.graph.nodes):
        if node not in needed:
            continue
        if node.op == "placeholder":
            value = assumed(program, number, node, context)
            known[node] = engine.hold(held_meta(program, node, sizes), value)
        elif node.op == "get_attr":
            name = str(node.target)
            known[node] = engine.hold(table_meta(program, name, context), of_tensor(program.tensor(name)))
        else:
            known[node] = called(engine, program, node, known, extents)
    return engine.look(known[index])
