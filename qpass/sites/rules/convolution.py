"""Convolutions along a sequence, depthwise ones included."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qpass.sites.flow import Flow, Use, Weight
from qpass.sites.rule import rule
from qpass.sites.rules.contraction import input_name, plain
from qpass.sites.walk import Walk


@rule("conv1d", "conv2d", identity="(s*w/t)*(t*x) = s*(w*x)")
def convolution(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """y_o = Σ_i W_oi * x_i: channels of W's input take up factors, channels of its output make new ones."""
    names = ("stride", "padding", "dilation", "groups")
    groups = dict(zip(names, args), **kwargs).get("groups", 1)
    meta = walk.shape_of(node, (x, weight, bias, *args), kwargs)
    whole = isinstance(weight, Weight) and all(c.dim() == len(weight.sizes) for c in weight.coords)
    if not whole or not isinstance(x, Flow) or x.meta.dim() != len(weight.shape):
        values = [value for value in (x, weight, bias) if isinstance(value, Flow | Weight)]
        return walk.keep(node, values, (x, weight, bias, *args), kwargs, known=True)
    name = node.meta["name"]
    outputs, inputs = weight.shape[:2]
    labels = walk.tie(walk.labels(x, node), [0, *range(2, x.meta.dim())], f"%{name} has one factor a channel")
    flat = labels.reshape(-1)  # [C]
    which = (torch.arange(outputs) // (outputs // groups))[:, None] * inputs + torch.arange(inputs)[None]
    column = flat[which] if groups > 1 else flat[None].expand(outputs, inputs)
    row = walk.system.fresh(outputs)
    tail = [1] * (len(weight.shape) - 2)
    terms = [("row", row.reshape(outputs, 1, *tail).expand(weight.shape)),
             ("column", (-plain(column)).reshape(*column.shape, *tail).expand(weight.shape))]
    walk.use(Use(weight.name, weight.sizes, weight.coords, weight.offset, terms, name, reads=input_name(node, x)))
    for part in (flat, row):
        walk.shifts.refuse(part, f"%{name} pads with zeros")
    spread = row.reshape(1, outputs, *tail)
    found = walk.flow(meta, spread.expand(meta.shape))
    if bias is None:
        return found
    own = walk.labels(bias, node)
    walk.system.equal(own, row, f"the bias of %{name}")
    return found

