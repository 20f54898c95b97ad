"""SOLVED -> QUANTISED: quantize and dequantize, spelled in torchao's primitives, around every linear with a scheme.

before   %q = linear(%x, w)
after    %w_q = dequantize_affine(w.codes, [1, 128], w.scale, w.zero, u8, 0, 15, bf16)
         %q = linear(%x_q, %w_q)        %x_q shared by every linear that reads %x in one format

This is the interchange form: weights are plain tensors of codes, scales and zero points.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import NumericsError
from qpass.formats import Format
from qpass.graph.program import Derived, Param, Program, copy_graph
from qpass.graph.values import assign_names
from qpass.numerics import affine

aten = torch.ops.aten


def quantise(program: Program) -> Program:
    """Round every planned weight to nearest, unless a method has left its codes, and insert quantize-dequantize.

    Raises:
        NumericsError: NaN or Inf in a weight, with its name, count and first index.
    """
    graph, _ = copy_graph(program.graph)
    params, history = dict(program.params), dict(program.history)
    types: _Types = {}
    inputs: dict[tuple[fx.Node, Format], fx.Node] = {}
    weights: dict[tuple[fx.Node, Format], fx.Node] = {}
    for node in list(graph.nodes):
        choice = node.meta.get("plan")
        if choice is None or choice.scheme is None:
            continue
        x, weight = node.args[:2]
        builder = _Builder(graph, node, types)
        key = (weight, choice.scheme.weight)
        if key not in weights:
            _check_finite(program, weight.target)
            weights[key] = _weight(builder, params, history, weight, choice.scheme.weight)
        node.replace_input_with(weight, weights[key])
        if choice.scheme.input is not None:
            if (x, choice.scheme.input) not in inputs:
                inputs[x, choice.scheme.input] = _input(builder, x, choice.scheme.input)
            node.args = (inputs[x, choice.scheme.input], *node.args[1:])
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, params=params, history=history, stage="QUANTISED")


_Types = dict[tuple[tuple[str, ...], torch.dtype], Tensor]


class _Builder:
    """Calls inserted before one node, typed as they are made."""

    def __init__(self, graph: fx.Graph, node: fx.Node, types: _Types) -> None:
        self.graph, self.node, self.types = graph, node, types

    def call(self, target: Any, *args: Any, val: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_before(self.node):
            made = self.graph.call_function(target, args, kwargs)
        made.meta.update(scopes=self.node.meta.get("scopes", ()), rule="quantise", val=val)
        if name:
            made.meta["name"] = name
        return made

    def type(self, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """A fake tensor; one is shared by all values of a type, since each costs milliseconds on symbolic shapes."""
        key = (tuple(str(size) for size in shape), dtype)
        if key not in self.types:
            value = self.node.meta["val"]
            with value.fake_mode:
                self.types[key] = torch.empty(tuple(shape), dtype=dtype, device=value.device)
        return self.types[key]

    def param(self, name: str, like: Tensor) -> fx.Node:
        with self.graph.inserting_before(self.node):
            made = self.graph.create_node("get_attr", name)
        made.meta.update(name=name, val=self.type(like.shape, like.dtype))
        return made


def _weight(
    build: _Builder, params: dict[str, Param], history: dict[str, Any], weight: fx.Node, fmt: Format
) -> fx.Node:
    name = str(weight.target)
    rows, width = weight.meta["val"].shape
    codes, scale, zero = (f"{name}.{part}" for part in ("codes", "scale", "zero"))
    if codes not in params:
        for part, param in derive(name, rows, width, fmt).items():
            params[f"{name}.{part}"] = param
            history[f"{name}.{part}"] = (*history.get(name, ()), f"{name}: round to nearest {fmt}")
    value, scales = build.param(codes, _like(params[codes])), build.param(scale, _like(params[scale]))
    zeros = None if fmt.symmetric else build.param(zero, _like(params[zero]))
    extra = affine.padding(fmt, width)
    if extra:
        padded = build.type((rows, width + extra), fmt.code_dtype)
        value = build.call(aten.constant_pad_nd.default, value, [0, extra], val=padded)
    least, most = fmt.range
    block = affine.block(fmt, width + extra)
    dtype = weight.meta["val"].dtype
    whole = build.type((rows, width + extra), dtype)
    value = build.call(affine.DEQUANTIZE, value, block, scales, zeros, fmt.code_dtype, least, most, dtype, val=whole)
    return build.call(aten.slice.Tensor, value, -1, 0, width, val=weight.meta["val"]) if extra else value


def _like(param: Param) -> Tensor:
    return param.like if isinstance(param, Derived) else param


def derive(name: str, rows: int, width: int, fmt: Format) -> dict[str, Derived]:
    """Codes, scale and zero point of a weight by round to nearest, as parameters to be computed when asked for."""
    groups = fmt.groups(width)
    qparams = torch.empty(rows, groups, dtype=fmt.scale_dtype, device="meta")
    choose = functools.partial(affine.choose, fmt=fmt)
    parts = {
        "scale": Derived((name,), lambda w: choose(w)[0], qparams),
        "zero": Derived((name,), lambda w: choose(w)[1].to(torch.uint8), torch.empty_like(qparams, dtype=torch.uint8)),
    }
    if fmt.symmetric:
        del parts["zero"]
        sources = (name, f"{name}.scale")
        fn = lambda w, s: affine.quantize(w, s, torch.zeros_like(s, dtype=torch.int32), fmt)  # noqa: E731
    else:
        sources = (name, f"{name}.scale", f"{name}.zero")  # type: ignore[assignment]
        fn = lambda w, s, z: affine.quantize(w, s, z.to(torch.int32), fmt)  # type: ignore[misc]  # noqa: E731
    parts["codes"] = Derived(sources, fn, torch.empty(rows, width, dtype=fmt.code_dtype, device="meta"))
    return parts


def _input(build: _Builder, x: fx.Node, fmt: Format) -> fx.Node:
    value, name = x.meta["val"], x.meta["name"]
    wide = x
    if value.dtype is not torch.float32:
        widened = build.type(value.shape, torch.float32)
        wide = build.call(aten._to_copy.default, x, val=widened, dtype=torch.float32)
    block = [1] * (value.dim() - 1) + [value.shape[-1]]
    least, most = fmt.range
    rows = (*value.shape[:-1], 1)
    qparams = build.type(rows, torch.float32), build.type(rows, torch.int32)
    chosen = build.call(affine.CHOOSE, wide, affine.mapping(fmt), block, fmt.code_dtype, least, most, affine.EPSILON,
                        torch.float32, torch.int32, True, name=f"{name}.qparams", val=qparams)
    scale = build.call(operator.getitem, chosen, 0, name=f"{name}.scale", val=qparams[0])
    zero = build.call(operator.getitem, chosen, 1, name=f"{name}.zero", val=qparams[1])
    codes = build.call(affine.QUANTIZE, wide, block, scale, zero, fmt.code_dtype, least, most, name=f"{name}.codes",
                       val=build.type(value.shape, fmt.code_dtype))
    return build.call(affine.DEQUANTIZE, codes, block, scale, zero, fmt.code_dtype, least, most, value.dtype,
                      name=f"{name}.dequantized", val=build.type(value.shape, value.dtype))


def _check_finite(program: Program, name: str) -> None:
    tensor = program.tensor(name)
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):  # NaN and Inf reach the ends; nothing is copied
        return
    bad = ~torch.isfinite(tensor)
    if bad.any():
        first = tuple(int(index) for index in bad.nonzero()[0])
        raise NumericsError(f"{int(bad.sum())} NaN or Inf values, the first at {first}", where=name,
                            fix="repair the checkpoint, or keep this linear in float with the line "
                                f'"{name}": keep')
