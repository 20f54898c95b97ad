"""Queries, keys and values of one call of their weights: turned, quantized and put behind the caches in that call.

before   %q, .., %k, .., %v, .. = integer_linears(%codes, ...); views of each by heads; rotary_quantize(%q, ...),
         rotary_append(%k, ...), append(%v, ...)
after    %q_codes, %q_scale, %q_exponent, %keys, %values = integer_linears_heads(%codes, ...)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from qpass.graph.values import op_name

_ENDS = ("qpass_cpu.integer_rotary_quantize", "qpass_cpu.integer_rotary_append", "qpass_cpu.integer_append")


def join_heads(graph: fx.Graph) -> None:
    """Apply it wherever nothing else reads what is between."""
    for node in list(graph.nodes):
        if op_name(node.target) == "qpass_cpu.integer_linears" and (ends := _ends(node)) is not None:
            _replace(graph, node, *ends)


def _ends(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """The three calls that read the six results of ``node`` by heads, if they are all that does."""
    parts = {part.args[1]: part for part in node.users if part.target is operator.getitem}
    if sorted(parts) != [0, 1, 2, 3, 4, 5] or len(node.users) != 6:  # type: ignore[type-var]
        return None
    found = []
    for number, name in enumerate(_ENDS):
        x, k = _by_heads(parts[2 * number]), _only(_only(parts[2 * number + 1], "unsqueeze", -1), "transpose", -3, -2)
        end = next(iter(x.users), None) if x is not None and k is not None else None
        if end is None or op_name(end.target) != name or end.args[:2] != (x, k) or {*x.users, *k.users} != {end}:  # type: ignore[union-attr]
            return None
        found.append(end)
    turned, keys, values = found
    symmetric = turned.args[5] and not any(part.args[1] == 1 for part in turned.users)
    last = max(found)
    readers = [user for part in turned.users for user in part.users] + [user for end in found[1:] for user in end.users]
    early = any(user < last for user in readers)
    same = turned.args[2:4] == keys.args[2:4] and _width(turned) == _width(keys)
    return (turned, keys, values) if symmetric and same and not early else None


def _width(end: fx.Node) -> Any:
    return end.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]


def _by_heads(part: fx.Node) -> fx.Node | None:
    """``part`` [B, T, C] seen as [B, heads, T, d]."""
    if part.meta["val"].dim() != 3:
        return None
    view = _only(part, "reshape") or _only(part, "view")
    rows = view is not None and view.meta["val"].dim() == 4
    same = rows and [str(size) for size in view.meta["val"].shape[:2]] == [str(s) for s in part.meta["val"].shape[:2]]  # type: ignore[union-attr]
    return _only(view, "transpose", -3, -2) if same else None


def _only(node: fx.Node | None, name: str, *literals: Any) -> fx.Node | None:
    """The one reader of ``node``, if it is that op with these literals."""
    if node is None or len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if op_name(reader.target) == name and reader.args[1:][: len(literals)] == literals else None


def _replace(graph: fx.Graph, node: fx.Node, turned: fx.Node, keys: fx.Node, values: fx.Node) -> None:
    bits, key_bits, past_keys = turned.args[4], *keys.args[4:6]
    value_bits, past_values = values.args[2:4]
    last = max(turned, keys, values)
    with graph.inserting_before(last):
        args = (*node.args, *turned.args[2:4], bits, key_bits, value_bits, past_keys, past_values)
        made = graph.call_function(torch.ops.qpass_cpu.integer_linears_heads.default, args)
        made.meta = {key: value for key, value in turned.meta.items() if key != "name"}
        of_queries = [turned.meta["val"][at] for at in (0, 2, 3)]
        made.meta["val"] = (*of_queries, keys.meta["val"], values.meta["val"])
        results = [graph.call_function(operator.getitem, (made, number)) for number in range(5)]
    for result, value in zip(results, made.meta["val"]):
        result.meta["val"] = value
    for part in list(turned.users):
        _stand_in(graph, results[{0: 0, 2: 1, 3: 2}[part.args[1]]], part)  # type: ignore[index]
    graph.erase_node(turned)
    for result, old in zip(results[3:], (keys, values)):
        _stand_in(graph, result, old)


def _stand_in(graph: fx.Graph, new: fx.Node, old: fx.Node) -> None:
    new.meta = {**old.meta}
    old.replace_all_uses_with(new)
    graph.erase_node(old)
