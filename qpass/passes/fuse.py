"""QUANTISED -> FUSED: quantize and dequantize fold into single ops that carry their format.

before   %codes = quantize_affine(...); %x_q = dequantize_affine(...); %q = linear(%x_q, %w_q)
after    %x.codes, ... = qpass.rms_norm_quantize(...); %q = qpass.linear(%codes, %scale, %zero, w.codes, ...)

The spelling is the one that ``quantise`` wrote, so each fusion is one adjacency. A pair that an attention reads becomes
one op, ``qpass.fake_quantize``: attention itself computes in float, and the log says so.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.fusions import PRODUCERS
from qpass.graph.program import Change, Program, copy_graph
from qpass.graph.rewrite import infer
from qpass.graph.values import assign_names, op_name
from qpass.numerics import affine, codec
from qpass.passes.plan_attention import scheme_of

aten = torch.ops.aten


def fuse(program: Program) -> Program:
    """Fold every quantize-dequantize pair; report each quantize that could not join its producer."""
    graph, _ = copy_graph(program.graph)
    for node in [node for node in graph.nodes if node.meta.get("plan") and node.meta["plan"].scheme]:
        _fuse_linear(graph, node)
    for node in [node for node in graph.nodes if getattr(node.meta.get("experts"), "scheme", None)]:
        _fuse_experts(graph, node)
    for node in [node for node in graph.nodes if "rounds" in node.meta]:
        _fuse_rounding(graph, node)
    graph.eliminate_dead_code()
    changes = [_fuse_producer(graph, node) for node in list(graph.nodes) if node.target is ops.quantize]
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, stage="FUSED", log=program.log + tuple(changes) + tuple(_attention(graph)))


def _attention(graph: fx.Graph) -> Iterator[Change]:
    for node in graph.nodes:
        if scheme := scheme_of(node):
            what = f"computes in float on rounded {', '.join(scheme.formats)}: no fused op carries its formats"
            yield Change("fuse/attention", node.meta["name"], what)


def _fuse_rounding(graph: fx.Graph, node: fx.Node) -> None:
    """One op in place of a pair that an attention reads."""
    codes = node.args[0]
    assert isinstance(codes, fx.Node)
    with graph.inserting_before(node):
        fused = graph.call_function(ops.fake_quantize, (_source(codes), node.meta["rounds"]))
    fused.meta = {**node.meta, "rule": "fuse/attention"}
    node.replace_all_uses_with(fused)
    node.meta["name"] += ".unfused"


def _source(codes: fx.Node) -> fx.Node:
    """What was quantized, behind the cast that the spelling has."""
    made = codes.args[0]
    assert isinstance(made, fx.Node)
    x = made.args[0] if codes.target is operator.getitem else made
    assert isinstance(x, fx.Node)
    return x.args[0] if x.target is aten._to_copy.default and x.meta.get("rule") == "quantise" else x  # type: ignore[return-value]


def _fuse_linear(graph: fx.Graph, node: fx.Node) -> None:
    scheme = node.meta["plan"].scheme
    x, weight, *rest = node.args
    bias = rest[0] if rest else None
    parts = _weight_parts(weight)
    with graph.inserting_before(node):
        if scheme.input is None:
            args: tuple[Any, ...] = (x, *parts, bias, str(scheme.weight.plain))
            fused = graph.call_function(ops.weight_only_linear, args)
        else:
            inputs = _input_parts(graph, x, str(scheme.input))
            formats = str(scheme.input), str(scheme.weight.plain), node.meta["val"].dtype
            fused = graph.call_function(ops.linear, (*inputs, *parts, bias, *formats))
    fused.meta = {**node.meta, "rule": "fuse/linear"}
    node.replace_all_uses_with(fused)
    graph.erase_node(node)


def _fuse_experts(graph: fx.Graph, node: fx.Node) -> None:
    scheme = node.meta["experts"].scheme
    x, weight, offsets = node.args
    parts = _weight_parts(weight.args[0])  # type: ignore[union-attr, arg-type]
    with graph.inserting_before(node):
        if scheme.input is None:
            args: tuple[Any, ...] = (x, *parts, offsets, str(scheme.weight))
            fused = graph.call_function(ops.weight_only_grouped_linear, args)
        else:
            inputs = _input_parts(graph, x, str(scheme.input))  # type: ignore[arg-type]
            formats = str(scheme.input), str(scheme.weight), node.meta["val"].dtype
            fused = graph.call_function(ops.quantized_grouped_linear, (*inputs, *parts, offsets, *formats))
    fused.meta = {**node.meta, "rule": "fuse/experts"}
    node.replace_all_uses_with(fused)
    graph.erase_node(node)


def _weight_parts(weight: fx.Node) -> tuple[Any, Any, Any, Any]:
    """Codes, scale, zero point and outer scale behind ``slice(dequantize(pad(codes)))``, as ``spell`` wrote it."""
    while weight.target is aten.slice.Tensor:
        weight = weight.args[0]
    zero = outer = None
    if weight.target is ops.dequantize_weight:
        codes, scale, zero, outer = weight.args[:4]
    elif weight.target is codec.DEQUANTIZE_FLOAT8:
        codes, scale = weight.args[:2]
        scale = scale.args[0] if scale.target is aten._to_copy.default else scale
    else:
        assert weight.target is affine.DEQUANTIZE
        codes, _, scale, zero = weight.args[:4]
    if codes.target is aten.constant_pad_nd.default:
        codes = codes.args[0]
    return codes, scale, zero, outer


def _input_parts(graph: fx.Graph, dequantized: fx.Node, fmt: str) -> list[fx.Node]:
    """The three results of one ``qpass.quantize``, made in place of torchao's primitives on first use."""
    if "fused" in dequantized.meta:
        parts: list[fx.Node] = dequantized.meta["fused"]
        return parts
    if dequantized.target is ops.dequantize_input:
        return list(dequantized.args[:3])
    codes, scale = dequantized.args[0], dequantized.args[1 if dequantized.target is codec.DEQUANTIZE_FLOAT8 else 2]
    x = _source(codes)
    with graph.inserting_before(codes):
        call = graph.call_function(ops.quantize, (x, fmt))
        parts = [graph.call_function(operator.getitem, (call, index)) for index in range(3)]
    with scale.meta["val"].fake_mode:
        zero = torch.empty_like(scale.meta["val"], dtype=torch.int32)
    values = (codes.meta["val"], scale.meta["val"], zero)
    call.meta = {"val": values, "rule": "fuse/quantize", "scopes": codes.meta["scopes"],
                 "name": f"{x.meta['name']}.quantized"}
    for part, value, word in zip(parts, values, ("codes", "scale", "zero")):
        part.meta = {"val": value, "rule": "fuse/quantize", "scopes": codes.meta["scopes"],
                     "name": f"{x.meta['name']}.{word}"}
    for old in dequantized.args:
        if isinstance(old, fx.Node):
            old.meta["name"] += ".unfused"
    dequantized.meta["fused"] = parts
    return parts


def _fuse_producer(graph: fx.Graph, node: fx.Node) -> Change:
    """``quantize(norm(x))`` -> ``norm_quantize(x)`` where nothing else reads the norm."""
    producer, fmt = node.args
    name = node.meta["name"]
    fused_op = PRODUCERS.get(producer.target)
    if fused_op is None:
        made_by = op_name(producer.target) if producer.op == "call_function" else "an input"
        return Change("fuse/quantize", name, f"stands alone: it reads {made_by}, which no fusion joins")
    if len(producer.users) > 1:
        others = sorted({op_name(user.target) for user in producer.users if user is not node})
        read = f"{producer.meta['name']} is also read by {', '.join(others)}"
        return Change("fuse/quantize", name, f"stands alone: {read}")
    with graph.inserting_before(node):
        fused = graph.call_function(fused_op, (*_all_args(producer), fmt))
    fused.meta = {**node.meta, "rule": f"fuse/{op_name(fused_op).split('.')[-1]}"}
    node.replace_all_uses_with(fused)
    graph.erase_node(node)
    if "val" not in fused.meta:
        infer(fused)
    return Change("fuse/quantize", name, f"joined {op_name(producer.target)}")


def _all_args(node: fx.Node) -> list[Any]:
    """Arguments with the schema's defaults written out."""
    rest = node.target._schema.arguments[len(node.args):]
    return [*node.args, *(node.kwargs.get(argument.name, argument.default_value) for argument in rest)]
