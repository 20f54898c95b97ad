"""Sums, means and the like: what is reduced has one factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.sites.flow import Flow, Weight
from qpass.sites.rule import rule
from qpass.sites.walk import Walk


@rule("mean", identity="(s*x + s*y)/2 = s*((x + y)/2)")
def mean(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = mean(x)."""
    return _reduced(walk, node, x, args, kwargs, shifts=True)


@rule("sum", "nansum", identity="s*x + s*y = s*(x + y)")
def total(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = Σ x."""
    return _reduced(walk, node, x, args, kwargs)


@rule("amax", "amin", "max", "min", identity="Max(s*x, s*y) = s*Max(x, y)")
def extreme(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = max(x), with or without where it is."""
    if args and isinstance(args[0], Flow | Weight | Tensor):
        both = [value for value in (x, args[0]) if isinstance(value, Flow | Weight)]
        return walk.keep(node, both, (x, *args), kwargs, known=True)
    return _reduced(walk, node, x, args, kwargs)


@rule("linalg_vector_norm", "norm", identity="sqrt((s*x)**2 + (s*y)**2) = s*sqrt(x**2 + y**2)")
def norm(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = ‖x‖; the number of elements that are not 0 (order 0) is no length."""
    if args and args[0] == 0:
        return walk.keep(node, [x], (x, *args), kwargs, known=True)
    return _reduced(walk, node, x, args[1:] if args else (), kwargs, call=(x, *args))


@rule("cumsum", identity="s*x + s*y = s*(x + y)")
def cumsum(walk: Walk, node: fx.Node, x: Any, dim: int, **kwargs: Any) -> Any:
    """y_i = Σ_{j ≤ i} x_j."""
    labels = walk.tie(walk.labels(x, node), [dim], f"%{node.meta['name']} adds them up")
    walk.shifts.refuse(labels, f"%{node.meta['name']} adds them up")
    return walk.flow(walk.shape_of(node, (x, dim), kwargs), labels)


def _reduced(walk: Walk, node: fx.Node, x: Any, args: Any, kwargs: Any, *, shifts: bool = False,
             call: Any = None) -> Any:  # fmt: skip
    found = walk.shape_of(node, call or (x, *args), kwargs)
    metas = [found] if isinstance(found, Tensor) else list(found)
    labels = walk.labels(x, node)
    rank = labels.dim()
    dims = kwargs.get("dim", args[0] if args else None)
    named = [dims] if isinstance(dims, int) else dims
    every = [d % rank for d in named or range(rank)]
    labels = walk.tie(labels, every, f"%{node.meta['name']} adds them up")
    if not shifts:
        walk.shifts.refuse(labels, f"%{node.meta['name']} adds them up")
    if metas[0].dim() != rank:
        labels = labels[tuple(0 if d in every else slice(None) for d in range(rank))]
    result = [walk.flow(meta, labels if meta.is_floating_point() else None) for meta in metas]
    return result[0] if isinstance(found, Tensor) else result


@rule("softmax", "_softmax", "log_softmax", identity="exp(x) = exp(x)", always=True)
def softmax(walk: Walk, node: fx.Node, x: Any, dim: int, *args: Any, **kwargs: Any) -> Any:
    """y = exp(x) / Σ exp(x): no factor passes; the rows sum to 1."""
    why = f"%{node.meta['name']} (softmax) keeps every factor out"
    walk.zero(x, node, why)
    meta = walk.shape_of(node, (x, dim, *args), kwargs)
    one = "log" not in str(node.target) and dim % meta.dim() == meta.dim() - 1
    return Flow(meta, torch.zeros((), dtype=torch.int64).expand(meta.shape), why, rows_sum=one)
