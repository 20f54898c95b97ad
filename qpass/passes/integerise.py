"""SOLVED -> INTEGER: from token ids to logits without a floating-point value.

before   %h = rms_norm(%x, w, 1e-5) : f32[B, T, C];   %q = linear(%h, wq) : f32[B, T, N]
after    %h, %h.exponent = integer_rms_norm(%x, %x.exponent, w.mantissa, ...) : i32[B, T, C], i32[B, T, 1]
         %h.codes, ... = integer_quantize(%h, ...);   %q, %q.exponent = integer_linear(%h.codes, ..., wq.codes, ...)

A value that carries a scale flows as several. Weights are codes and dyadic scales; caches are int8; cos and sin are
tables. An op without an integer form is refused with its name and source line, before anything runs. I-LLM (2024).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.capture.integer_call import integer_call
from qpass.errors import UnsupportedError
from qpass.formats.integer import Integer
from qpass.graph.program import Program
from qpass.graph.values import assign_names
from qpass.numerics.integer.cache import EXTRA
from qpass.passes.integer import RULES
from qpass.passes.integer.other import other
from qpass.passes.integer.state import Absent, State


def integerise(program: Program, options: Integer) -> Program:
    """The integer program.

    Raises:
        UnsupportedError: an op, a format or a call that has no integer form.
        NumericsError: NaN or Inf in a weight.
    """
    call = integer_call(program.call, options.positions, EXTRA) if program.call is not None else None
    state = State(program, options)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            state.values[node] = _input(state, node)
        elif node.op == "get_attr":
            floating = node.meta["val"].dtype.is_floating_point
            state.values[node] = Absent(node, node) if floating else state.copy(node)
        elif node.op == "output":
            output = state.graph.output(_results(state, node))
            output.meta = dict(node.meta)
        elif node.target in RULES:
            state.values[node] = RULES[node.target](state, node)
        else:
            state.values[node] = other(state, node)
    state.graph.eliminate_dead_code()
    assign_names(state.graph)
    if call is not None:
        call = replace(call, vocabulary=_vocabulary(state))
    return program.with_graph(
        state.graph, params=state.params, history=state.history, stage="INTEGER", call=call
    )


def _input(state: State, node: fx.Node) -> Any:
    """A cache becomes int8 with two more channels; integers stay; other floats are refused when they are used."""
    value = node.meta["val"]
    caches = [user for user in node.users if user.target is ops.cache_update and user.args[0] is node]
    if caches:
        made = state.graph.placeholder(str(node.target))
        made.meta = dict(node.meta)
        made.meta["val"] = state.type((*value.shape[:-1], value.shape[-1] + EXTRA), torch.int8)
        return made
    return Absent(node, node) if value.dtype.is_floating_point else state.copy(node)


def _vocabulary(state: State) -> int:
    """Rows of the smallest table that token ids are looked up in."""
    sizes = [node.args[1].meta["val"].shape[0] for node in state.graph.nodes
             if node.target is ops.integer_embedding and str(node.args[0].target) == "input_ids"]  # fmt: skip
    return min(sizes, default=(1 << 31) - 1)


def _results(state: State, node: fx.Node) -> list[fx.Node]:
    """Integers as they are; the one row, the logits, as (x, exponent)."""
    found: list[fx.Node] = []
    for number, arg in enumerate(node.args[0]):  # type: ignore[arg-type, union-attr, var-annotated]
        value = state.values[arg]
        if isinstance(value, fx.Node):
            found.append(value)
            continue
        row = state.row(arg, node)
        if number:
            raise UnsupportedError("an integer-only program has one float result, its logits",
                                   where=f"%{arg.meta['name']}", fix="compile a causal language model")  # fmt: skip
        shape = tuple(arg.meta["val"].shape)
        types = state.type(shape, torch.int32), state.type((*shape[:-1], 1), torch.int32)
        names = ("logits", "logits.exponent")
        found += state.several(ops.integer_logits, row.x, row.k, like=arg, types=types, names=names)
    return found
