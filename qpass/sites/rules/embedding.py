"""Tables that are read by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qpass.sites.flow import Flow, Use, Weight
from qpass.sites.rule import rule
from qpass.sites.walk import Walk


@rule("embedding", identity="s*w = s*w")
def embedding(walk: Walk, node: fx.Node, table: Any, which: Any, *args: Any) -> Any:
    """y = W[i]: a factor for each column of the table, whichever row is read."""
    meta = walk.shape_of(node, (table, which), {})
    if not isinstance(table, Weight):
        labels = walk.tie(walk.labels(table, node), [0], "data picks the row") if isinstance(table, Flow) else None
        return walk.flow(meta, None if labels is None else labels[0].expand(meta.shape))
    columns = walk.system.fresh(1, table.shape[-1])
    walk.use(Use(table.name, table.sizes, table.coords, table.offset, [("table", columns.expand(table.shape))],
                 node.meta["name"]))  # fmt: skip
    walk.shifts.refuse(columns, f"%{node.meta['name']} is a table, which has no bias")
    return walk.flow(torch.empty_like(meta, dtype=node.meta["val"].dtype), columns[0].expand(meta.shape))
