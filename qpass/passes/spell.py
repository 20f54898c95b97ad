"""How a quantized weight and a quantized input are spelled in a QUANTISED graph, by format. One way for each format.

``fuse`` reads what is written here, so the two files change together.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.formats import Format
from qpass.graph.program import Derived, Param
from qpass.numerics import affine, codec
from qpass.ops.attention import SPARE, weights_arguments

aten = torch.ops.aten


class Builder:
    """Calls inserted before one node, typed as they are made."""

    def __init__(self, graph: fx.Graph, node: fx.Node, types: dict[Any, Tensor]) -> None:
        self.graph, self.node, self.types = graph, node, types

    def call(self, target: Any, *args: Any, val: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        """A call node whose fake value is ``val``."""
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
            value = _value(self.node)
            with value.fake_mode:
                self.types[key] = torch.empty(tuple(shape), dtype=dtype, device=value.device)
        return self.types[key]

    def row_block(self, x: fx.Node) -> list[Any]:
        """torchao's block size of inputs that have a scale a row, whose length may be a symbol."""
        *rest, width = codec.row_block(x.meta["val"])
        return [*rest, width if isinstance(width, int) else self.call(aten.sym_size.int, x, -1, val=width)]

    def param(self, name: str, param: Param) -> fx.Node:
        """A node that reads a parameter."""
        like = param.like if isinstance(param, Derived) else param
        with self.graph.inserting_before(self.node):
            made = self.graph.create_node("get_attr", name)
        made.meta.update(name=name, val=self.type(like.shape, like.dtype))
        return made


def _value(node: fx.Node) -> Any:
    """A fake tensor near ``node``."""
    while not isinstance(node.meta.get("val"), Tensor):
        node = node.prev
    return node.meta["val"]


def spell_weight(build: Builder, weight: fx.Node, fmt: Format, params: Mapping[str, Param]) -> fx.Node:
    """The dequantized weight, from its parts ``codes``, ``scale``, ``zero`` and ``outer``; of experts a view of it."""
    name, value = str(weight.target), weight.meta["val"]
    if value.dim() > 2:
        rows = build.type((math.prod(value.shape[:-1]), value.shape[-1]), value.dtype)
        whole = _spell_rows(build, name, rows, fmt, params)
        return build.call(aten.reshape.default, whole, list(value.shape), val=build.type(value.shape, value.dtype))
    return _spell_rows(build, name, value, fmt, params)


def _spell_rows(build: Builder, name: str, value: Tensor, fmt: Format, params: Mapping[str, Param]) -> fx.Node:
    parts = {part: build.param(f"{name}.{part}", params[f"{name}.{part}"])
             for part in ("codes", "scale", "zero", "outer") if f"{name}.{part}" in params}  # fmt: skip
    spelling = codec.spelling(fmt)
    if spelling == codec.OWN:
        args = (parts["codes"], parts["scale"], parts.get("zero"), parts.get("outer"), str(fmt), value.dtype)
        return build.call(ops.dequantize_weight, *args, val=value)
    rows, width = value.shape
    high, wide = rows + (-rows % fmt.rows if fmt.rows else 0), width + affine.padding(fmt, width)
    codes = parts["codes"]
    if (high, wide) != (rows, width):
        padded = build.type((high, wide), fmt.code_dtype)
        codes = build.call(aten.constant_pad_nd.default, codes, [0, wide - width, 0, high - rows], val=padded)
    whole = build.type((high, wide), value.dtype)
    if spelling == codec.FLOAT8:
        scale = parts["scale"]
        if fmt.scale_dtype is not torch.float32:
            like = build.type(scale.meta["val"].shape, torch.float32)
            scale = build.call(aten._to_copy.default, scale, val=like, dtype=torch.float32)
        result = build.call(codec.DEQUANTIZE_FLOAT8, codes, scale, value.dtype, val=whole)
    else:
        scaling = (affine.block(fmt, wide), parts["scale"], parts.get("zero"), fmt.code_dtype, *fmt.range, value.dtype)
        result = build.call(affine.DEQUANTIZE, codes, *scaling, val=whole)
    if high != rows:
        result = build.call(aten.slice.Tensor, result, 0, 0, rows, val=build.type((rows, wide), value.dtype))
    return result if wide == width else build.call(aten.slice.Tensor, result, -1, 0, width, val=value)


def spell_input(build: Builder, x: fx.Node, fmt: Format, static: Sequence[fx.Node]) -> fx.Node:
    """The dequantized input. ``static``: its scale and zero point, for a format that has them fixed."""
    value, name = x.meta["val"], x.meta["name"]
    codes_type = build.type(value.shape, fmt.code_dtype)
    whole = {"name": f"{name}.dequantized", "val": build.type(value.shape, value.dtype)}
    if static:
        codes = build.call(ops.quantize_static, x, *static, str(fmt), name=f"{name}.codes", val=codes_type)
        return build.call(ops.dequantize_input, codes, *static, str(fmt), value.dtype, **whole)
    spelling = codec.spelling(fmt) if fmt.granularity == "token" else codec.OWN
    rows = (*value.shape[:-1], fmt.groups(value.shape[-1]))
    qparams = build.type(rows, torch.float32), build.type(rows, torch.int32)
    if spelling == codec.OWN:
        made = build.call(ops.quantize, x, str(fmt), name=f"{name}.quantized", val=(codes_type, *qparams))
        parts = [build.call(operator.getitem, made, index, name=f"{name}.{part}", val=made.meta["val"][index])
                 for index, part in enumerate(("codes", "scale", "zero"))]  # fmt: skip
        return build.call(ops.dequantize_input, *parts, str(fmt), value.dtype, **whole)
    wide = x
    if value.dtype is not torch.float32:
        wide = build.call(aten._to_copy.default, x, val=build.type(value.shape, torch.float32), dtype=torch.float32)
    if spelling == codec.FLOAT8:
        chosen = wide, build.row_block(x), fmt.code_dtype, torch.float32, affine.EPSILON
        scale = build.call(codec.CHOOSE_FLOAT8, *chosen, name=f"{name}.scale", val=qparams[0])
        codes = build.call(codec.QUANTIZE_FLOAT8, wide, scale, fmt.code_dtype, name=f"{name}.codes", val=codes_type)
        return build.call(codec.DEQUANTIZE_FLOAT8, codes, scale, value.dtype, **whole)
    types, block = (fmt.code_dtype, *fmt.range), build.row_block(x)
    chosen = build.call(affine.CHOOSE, wide, affine.mapping(fmt), block, *types, affine.EPSILON, torch.float32,
                        torch.int32, True, name=f"{name}.qparams", val=qparams)  # fmt: skip
    scale, zero = (build.call(operator.getitem, chosen, index, name=f"{name}.{part}", val=qparams[index])
                   for index, part in enumerate(("scale", "zero")))  # fmt: skip
    codes = build.call(affine.QUANTIZE, wide, block, scale, zero, *types, name=f"{name}.codes", val=codes_type)
    return build.call(affine.DEQUANTIZE, codes, block, scale, zero, *types, value.dtype, **whole)


def spell_attention(build: Builder, node: fx.Node, rounded: Callable[[Builder, fx.Node, Format], fx.Node]) -> fx.Node:
    """An attention on rounded operands; ``rounded`` spells one. Where p has a format, two ops stand for the attention.

    A row of p gets a 0 behind it while it is rounded: no range changes, and no primitive meets a row of one value.
    """
    scheme, args, meta = node.meta["attention"].scheme, node.args, node.meta
    q, k, v = (x if fmt is None else rounded(build, x, fmt) for x, fmt in zip(args, (scheme.q, scheme.k, scheme.v)))
    if scheme.p is None:
        return build.call(node.target, q, k, v, *args[3:], val=meta["val"])
    shape, dtype, name = (*meta["val"].shape[:-1], k.meta["val"].shape[-2]), q.meta["val"].dtype, meta["name"]
    p = build.call(ops.attention_weights, q, k, *weights_arguments(node.target, args), val=build.type(shape, dtype),
                   name=f"{name}.weights")  # fmt: skip
    wide = build.type((*shape[:-1], shape[-1] + 1), dtype)
    padded = build.call(aten.constant_pad_nd.default, p, list(SPARE), val=wide, name=f"{name}.weights.padded")
    p = build.call(aten.slice.Tensor, rounded(build, padded, scheme.p), -1, 0, -1, val=p.meta["val"])
    return build.call(ops.attention_output, p, v, val=meta["val"])
