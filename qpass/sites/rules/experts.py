"""Linears of many experts at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qpass.sites.flow import Flow, Use, Weight
from qpass.sites.rule import rule
from qpass.sites.rules.contraction import input_name, plain, shape_of
from qpass.sites.walk import Walk

LINEAR = "(s*w/t)*(t*x) = s*(w*x)"


@rule("qpass.grouped_linear", identity=LINEAR)
def grouped_linear(walk: Walk, node: fx.Node, x: Any, weight: Any, offsets: Any) -> Any:
    """y = W_e x for each row of x: as below, with weights [E, N, K]."""
    turned = weight.moved(lambda coord: coord.mT) if isinstance(weight, Weight) else weight.mT
    return grouped_mm(walk, node, x, turned, offsets)


@rule("_grouped_mm", "transformers.grouped_mm_fallback", identity=LINEAR)
def grouped_mm(walk: Walk, node: fx.Node, x: Any, weight: Any, offsets: Any = None, *args: Any, **kwargs: Any) -> Any:
    """y = x W_e for each row of x, e its group: an expert has factors of its own until rows of several meet."""
    key = node.kwargs.get("offs", node.args[2] if len(node.args) > 2 else None)
    grouped = isinstance(weight, Weight) and len(weight.shape) == 3 and len(shape_of(x)) == 2 and key is not None
    if not grouped:
        return walk.keep(node, [v for v in (x, weight) if isinstance(v, Flow | Weight)], (x, weight, offsets, *args),
                          kwargs, known=True)  # fmt: skip
    name = node.meta["name"]
    experts, _, width = weight.shape
    if isinstance(x, Flow) and x.over == key:
        labels = walk.tie(x.labels, [1], f"%{name} has one factor a channel")[:, 0]  # [E or 1, K]
    else:
        labels = walk.tie(walk.labels(x, node), [0], f"%{name} has one factor a channel")
    labels = labels.expand(experts, weight.shape[1])
    row = walk.system.fresh(experts, 1, width)
    column = (-plain(labels))[:, :, None]
    walk.use(Use(weight.name, weight.sizes, weight.coords, weight.offset,
                 [("row", row.expand(weight.shape)), ("column", column.expand(weight.shape))], name,
                 reads=input_name(node, x)))  # fmt: skip
    walk.columns.append((name, labels, x.why if isinstance(x, Flow) else ""))
    for part in (row, labels):
        walk.shifts.refuse(part, f"%{name} has no bias of its own for each expert")
    meta = torch.empty(shape_of(x)[0], width, dtype=node.meta["val"].dtype, device="meta")
    return walk.flow(meta, row.expand(experts, *meta.shape), over=key)
