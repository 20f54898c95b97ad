"""FUSED -> FUSED: keys and values that attention reads in a format lie in the cache as rows of codes.

before   %k = cache_update(%past, %new); %k_q = fake_quantize(%k, int8:token:asym)    %past, %k : bf16[B, H, S, D]
         %y = attention(%q, %k_q, %v_q, %mask)
after    %new.rows = kv_rows(%new, int8:token:asym); %k = cache_update(%past, %new.rows)    %past, %k : i8[B, H, S, W]
         %y = kv_attention(%q, %k, %v, %mask, ...)

Exact: a row's codes depend on the row alone, so the codes of all rows are those of the past and of the new ones. Where
p has a format, or only one of keys and values, ``kv_unpack`` stands where the rounding stood. The call convention
follows.
A cache stays in float, with the reason in the plan, unless all who read it read one format and the caller hands back
what the last call gave.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.capture.causal_call import CausalLMCall, with_rows
from qpass.capture.integer_call import IntegerCall
from qpass.formats import Format
from qpass.graph.program import Change, Program, copy_graph
from qpass.graph.values import assign_names, op_name
from qpass.numerics import kv_rows
from qpass.ops import ATTENTIONS
from qpass.passes.plan_attention import COMPUTED, AttentionChoice, scheme_of


def cache_codes(program: Program) -> Program:
    """The program with every cache that can be codes as codes; nothing changes for one that has none."""
    graph, _ = copy_graph(program.graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    widths: dict[str, int] = {}
    for update in [node for node in graph.nodes if node.target is ops.cache_update]:
        if refusal(graph, program.call, update) is None:
            spec = program.call.inputs[placeholders.index(update.args[0])]
            widths[spec.name] = _store(graph, update)
    if not widths:
        return program
    joined = {node.meta["name"]: _join(graph, node) for node in list(graph.nodes) if _reads_rows(node)}
    graph.eliminate_dead_code()
    assign_names(graph)
    log = tuple(line for line in program.log if line.by != "fuse/attention" or line.where not in joined)
    log += tuple(Change("cache_codes", name, f"{width} bytes a token of a head") for name, width in widths.items())
    return program.with_graph(graph, call=with_rows(program.call, widths), log=log)


def plan_caches(graph: fx.Graph, call: Any) -> None:
    """Say on every ``AttentionChoice`` of a PLANNED graph which of keys and values are codes, or why they are not."""
    for node in graph.nodes:
        if scheme_of(node):
            node.meta["attention"] = _planned(graph, call, node)


def refusal(graph: fx.Graph, call: Any, update: fx.Node) -> str | None:
    """Why a ``cache_update`` of a PLANNED or a FUSED graph stays in float; None if it becomes codes."""
    if not isinstance(call, CausalLMCall) or isinstance(call, IntegerCall):
        return "the cache is not qpass's: it is of causal language models, by qpass.compile"
    past = update.args[0]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    results = list(output.args[0])
    place = dict(call.states).get(inputs.index(past)) if past in inputs else None
    if place is None or results[place] is not update or results.count(update) != 1:
        return "it is not what the next call gets as its past"
    readers = [user for user in past.users if user is not update and not _counts(user)]  # type: ignore[union-attr]
    readers += [user for user in update.users if None in _wants(user, update)]
    others = sorted({op_name(user.target) for user in readers})
    if others:
        return f"it is read in float by {', '.join(others)}"
    formats = sorted({str(fmt) for user in update.users for fmt in _wants(user, update)})
    return None if len(formats) == 1 else f"its readers ask for {len(formats)} formats"


def _wants(user: fx.Node, update: fx.Node) -> list[Format | None]:
    """The formats that a reader wants the values of ``update`` in; None among them for float."""
    if user.op == "output" or _counts(user):
        return []
    if user.target is ops.fake_quantize:
        return [Format.parse(str(user.args[1]))]
    scheme = scheme_of(user)
    if scheme is None or user.target not in ATTENTIONS:
        return [None]
    return [getattr(scheme, operand) for operand, arg in zip("qkv", user.args) if arg is update]


def _counts(user: fx.Node) -> bool:
    """Whether a reader asks for the size of a dimension that rows of codes have too."""
    return user.target is torch.ops.aten.sym_size.int and user.args[1] in (0, 1, 2)


def _planned(graph: fx.Graph, call: Any, node: fx.Node) -> AttentionChoice:
    choice: AttentionChoice = node.meta["attention"]
    assert choice.scheme is not None
    asked = [operand for operand in "kv" if operand in choice.scheme.formats]
    reasons, coded, size, plain = [], [], 0, 0
    for operand, x in zip("kv", node.args[1:3]):
        value, fmt = x.meta["val"], getattr(choice.scheme, operand)  # type: ignore[union-attr]
        heads, width = value.shape[1], value.shape[-1]
        made_by = op_name(x.target) if x.op == "call_function" else "an input"  # type: ignore[union-attr]
        why = refusal(graph, call, x) if x.target is ops.cache_update else f"made by {made_by}, not read from a cache"  # type: ignore[union-attr, arg-type]
        plain += heads * width * value.element_size()
        if fmt is not None and why is None:
            coded.append(operand)
            size += heads * kv_rows.width(fmt, width)
        else:
            size += heads * width * value.element_size()
            reasons += [f"{operand} in float: {why}"] if fmt is not None else []
    if not asked:
        return choice
    if not coded:
        return replace(choice, computed="; ".join([COMPUTED, *dict.fromkeys(reasons)]))
    whole = coded == ["k", "v"] and choice.scheme.p is None
    text = f"{'kv_attention' if whole else 'reference'} on codes in the cache: {size} bytes a token, {plain} in float"
    return replace(choice, coded=tuple(coded), computed="; ".join([text, *reasons]))


def _store(graph: fx.Graph, update: fx.Node) -> int:
    """Make one cache rows of codes; returns the bytes of a row."""
    past, new = update.args
    assert isinstance(past, fx.Node) and isinstance(new, fx.Node)
    readers = [user for user in update.users if user.target is ops.fake_quantize]
    value, form = update.meta["val"], str(readers[0].args[1])
    D = value.shape[-1]
    width = kv_rows.width(Format.parse(form), D)
    made = _call(graph, update, ops.kv_rows, (new, form), _rows(new.meta["val"], width), f"{new.meta['name']}.rows")
    update.args = (past, made)
    past.meta["val"], update.meta["val"] = _rows(past.meta["val"], width), _rows(value, width)
    for reader in readers:
        val = reader.meta["val"]
        plain = _call(graph, reader, ops.kv_unpack, (update, form, D, val.dtype), val, reader.meta["name"])
        reader.replace_all_uses_with(plain)
        graph.erase_node(reader)
    return width


def _reads_rows(node: fx.Node) -> bool:
    """Whether an attention reads keys and values that are both unpacked to the type of its query."""
    if node.target not in ATTENTIONS:
        return False
    q, k, v = node.args[:3]
    parts = (k, v)
    return all(x.target is ops.kv_unpack and x.meta["val"].dtype is q.meta["val"].dtype for x in parts)  # type: ignore[union-attr]


def _join(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Unpacking and attention as one op."""
    q, k, v, *rest = node.args
    keys, values = ((x.args[0], *x.args[1:3]) for x in (k, v))  # type: ignore[union-attr]
    args = _arguments(node.target, q, keys, values, rest)
    made = _call(graph, node, ops.kv_attention, args, node.meta["val"], node.meta["name"])
    made.meta = {**node.meta, "rule": "cache_codes"}
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made


def _arguments(op: Any, q: Any, keys: Any, values: Any, rest: list[Any]) -> tuple[Any, ...]:
    """Those of ``kv_attention``. keys, values: (rows, format, width); rest: of ``op``, from the mask on."""
    mask, *options = rest
    (k, k_format, k_width), (v, v_format, v_width) = keys, values
    if op is ops.eager_attention:
        scale, softcap = (*options, 0.0)[:2]
        last: tuple[Any, ...] = (False, scale, softcap, True)
    else:
        last = (*options, *(False, None)[len(options) :], 0.0, False)
    return (q, k, v, mask, k_format, v_format, k_width, v_width, *last)


def on_codes(node: fx.Node) -> bool:
    """Whether an attention of a PLANNED graph becomes ``kv_attention``."""
    choice = node.meta.get("attention")
    if not isinstance(choice, AttentionChoice) or choice.scheme is None:
        return False
    same = all(x.meta["val"].dtype is node.args[0].meta["val"].dtype for x in node.args[1:3])  # type: ignore[union-attr]
    return choice.coded == ("k", "v") and choice.scheme.p is None and same


def planned_calls(program: Program) -> list[tuple[Any, ...]]:
    """The arguments, tensors fake, of every ``kv_attention`` that a PLANNED program is going to have."""
    found = []
    for node in program.graph.nodes:
        if on_codes(node):
            scheme = node.meta["attention"].scheme
            q, k, v, *rest = fx.map_arg(node.args, lambda arg: arg.meta["val"])
            sides = [(_rows(x, kv_rows.width(fmt, x.shape[-1])), str(fmt), x.shape[-1])
                     for x, fmt in ((k, scheme.k), (v, scheme.v))]  # fmt: skip
            found.append(_arguments(node.target, q, *sides, rest))
    return found


def _call(graph: fx.Graph, before: fx.Node, op: Any, args: Any, val: Any, name: str) -> fx.Node:
    with graph.inserting_before(before):
        made = graph.call_function(op, args)
    made.meta = {"val": val, "rule": "cache_codes", "scopes": before.meta.get("scopes", ()), "name": name}
    return made


def _rows(value: Any, width: int) -> Tensor:
    """The fake value of rows of codes of ``value``."""
    with value.fake_mode:
        return torch.empty((*value.shape[:-1], width), dtype=torch.int8, device=value.device)
