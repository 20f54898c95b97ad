"""Writing into a value at places that data or constants name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.sites.flow import Flow, Weight
from qpass.sites.rule import rule
from qpass.sites.walk import Walk


@rule("index_add", "index_copy", "scatter_add", "scatter", identity="s*x + s*y = s*(x + y)")
def scatter(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = x with x₂ written or added along one dimension: one factor all along it, the same for both."""
    source = next((arg for arg in args if isinstance(arg, Flow | Weight)), None)
    dim = next((arg for arg in args if isinstance(arg, int)), 0)
    if source is None or not isinstance(x, Flow) or "reduce" in kwargs:
        values = [value for value in (x, source) if isinstance(value, Flow | Weight)]
        return walk.keep(node, values, (x, *args), kwargs, known=True)
    return _written(walk, node, x, source, dim % x.meta.dim(), (x, *args), kwargs)


@rule("index_put", identity="s*x + s*y = s*(x + y)")
def index_put(walk: Walk, node: fx.Node, x: Any, indices: Any, values: Any, *args: Any) -> Any:
    """y = x with values written at an index of the first dimension."""
    mask = indices[0] if len(indices) == 1 and isinstance(indices[0], Tensor) else None
    if isinstance(x, Flow) and isinstance(values, Flow) and mask is not None and mask.dtype == torch.bool:
        return _masked(walk, node, x, mask.dim(), values)
    flows = isinstance(x, Flow) and isinstance(values, Flow)
    if not flows or len(indices) != 1 or values.meta.dim() != x.meta.dim():
        kept = [value for value in (x, values) if isinstance(value, Flow | Weight)]
        return walk.keep(node, kept, (x, indices, values, *args), {}, known=True)
    return _written(walk, node, x, values, 0, (x, indices, values, *args), {})


def _masked(walk: Walk, node: fx.Node, x: Flow, rank: int, values: Flow) -> Any:
    """y = x with rows replaced where a mask says: one factor all along the mask."""
    why = f"%{node.meta['name']} writes rows beside each other"
    rows = x.meta.dim() - rank
    one = walk.tie(walk.labels(x, node), range(rank), why)
    two = walk.labels(values, node)
    two = walk.tie(two, range(two.dim() - rows), why) if two.dim() > rows else two
    made = walk.merge(one, two.reshape(two.shape[two.dim() - rows :]) if rows else two.reshape(-1)[0], why)
    walk.shifts.refuse(made, why)
    return walk.flow(torch.empty_like(x.meta), made.expand(x.meta.shape))


def _written(walk: Walk, node: fx.Node, x: Flow, source: Any, dim: int, args: Any, kwargs: Any) -> Any:
    why = f"%{node.meta['name']} writes rows beside each other"
    one, two = (walk.tie(walk.labels(value, node), [dim], why) for value in (x, source))
    if one.dim() != two.dim():
        two = two.unsqueeze(dim)
    made = walk.merge(one, two, why)
    walk.shifts.refuse(made, why)
    meta = torch.empty_like(x.meta)
    return walk.flow(meta, made.expand(meta.shape))
