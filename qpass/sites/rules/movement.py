"""Ops that only move elements: the labels move along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qpass.graph.values import op_name
from qpass.sites.flow import Dynamic, Flow, Weight, carries
from qpass.sites.rule import rule
from qpass.sites.system import NEUTRAL
from qpass.sites.walk import Walk

MOVES = ("reshape", "view", "transpose", "permute", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "split",
         "split_with_sizes", "chunk", "unbind", "repeat", "repeat_interleave", "flip", "roll", "narrow", "unfold",
         "movedim", "expand_as", "view_as", "diagonal", "swapaxes", "flatten", "unflatten", "tensor_split", "clone",
         "contiguous", "alias", "detach", "numpy_T", "adjoint", "moveaxis", "swapdims", "mT", "ravel")
SHAPED = ("reshape", "view", "expand", "repeat", "unflatten", "expand_as", "view_as")
"""These take symbolic sizes as sizes only."""


@rule(*MOVES, identity="s*x = s*x")
def moved(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y[i] = x[π(i)]."""
    if not isinstance(x, Flow | Weight):
        return walk.keep(node, [], (x, *args), kwargs, known=True)
    if isinstance(x, Flow) and x.over is not None and not _keeps_rows(node, x, args):
        x = replace(x, labels=walk.labels(x, node), over=None)
    rest = pytree.tree_map(lambda leaf: leaf.meta if isinstance(leaf, Flow) else leaf, (args, kwargs))
    call: Any = node.target
    if any(isinstance(leaf, Dynamic) for leaf in pytree.tree_leaves(rest)) and op_name(node.target) not in SHAPED:
        x = _held(walk, node, x)
    return walk.move(x, node, lambda value: call(value, *rest[0], **rest[1]))


def _held(walk: Walk, node: fx.Node, x: Any) -> Any:
    """Where to cut depends on a size of the call: one factor all along every dimension it may be."""
    name, dims = op_name(node.target), [node.args[1]] if len(node.args) > 1 else []
    shape = x.shape if isinstance(x, Weight) else x.meta.shape
    along = [d % len(shape) for d in dims if isinstance(d, int)] if name in ("slice", "narrow", "select") else []
    along = along or list(range(len(shape)))
    if isinstance(x, Weight):
        moving = [any(coord.shape[d] > 1 and coord.stride(d) != 0 for d in along) for coord in x.coords]
        return replace(x, coords=tuple(torch.full((), -1).expand(coord.shape) if moves else coord
                                       for moves, coord in zip(moving, x.coords)))  # fmt: skip
    labels = walk.tie(walk.labels(x, node), along, f"%{node.meta['name']} cuts where a size of the call says")
    return replace(x, labels=labels.expand(shape), over=None)


def _keeps_rows(node: fx.Node, x: Flow, args: Any) -> bool:
    """Whether a movement leaves the first dimension alone, so that rows still belong to their groups."""
    name = op_name(node.target)
    where = {"split": 1, "split_with_sizes": 1, "chunk": 1, "narrow": 0, "slice": 0, "select": 0, "unbind": 0,
             "unsqueeze": 0}.get(name)  # fmt: skip
    if where is not None:
        dim = args[where] if len(args) > where else 0
        return isinstance(dim, int) and dim % (x.meta.dim() + (name == "unsqueeze")) > 0
    if name in ("reshape", "view"):
        return bool(args[0]) and args[0][0] == x.meta.shape[0]
    if name == "transpose":
        return all(dim % x.meta.dim() > 0 for dim in args[:2])
    return name in ("clone", "contiguous", "detach", "alias")


@rule("_to_copy", "to", "type_as", "dropout", identity="s*x = s*x", always=True)
def cast(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = x in another dtype. A cast to integers keeps factors out."""
    value = node.meta["val"]
    if not isinstance(x, Flow | Weight) or not carries(value):
        return walk.keep(node, [x] if isinstance(x, Flow | Weight) else [], (x, *args), kwargs, known=True)
    if isinstance(x, Weight):
        return replace(x, dtype=value.dtype)
    return replace(x, meta=torch.empty_like(x.meta, dtype=value.dtype))


@rule("cat", "concat", "concatenate", identity="s*x = s*x")
def cat(walk: Walk, node: fx.Node, values: Any, dim: int = 0) -> Any:
    """y = [x₁, x₂, …]."""
    return _joined(walk, node, values, dim, torch.cat)


@rule("stack", identity="s*x = s*x")
def stack(walk: Walk, node: fx.Node, values: Any, dim: int = 0) -> Any:
    """y = [x₁, x₂, …] along a new dimension."""
    return _joined(walk, node, values, dim, torch.stack)


@rule("qpass.cache_update", identity="s*x = s*x")
def cache_update(walk: Walk, node: fx.Node, past: Any, new: Any) -> Any:
    """y = [past, new] along the sequence."""
    return _joined(walk, node, (past, new), -2, torch.cat)


def _joined(walk: Walk, node: fx.Node, values: Any, dim: int, join: Any) -> Any:
    labels = [walk.labels(value, node) for value in values]
    metas = [value.meta if isinstance(value, Flow) else torch.empty(value.shape, device="meta") for value in values]
    at = dim % metas[0].dim() if join is torch.cat else None
    small = labels
    if at is not None:  # a dimension in which nothing varies need not be written out
        flat = [d for d in range(metas[0].dim()) if d != at and all(
            label.dim() == metas[0].dim() and (label.stride(d) == 0 or label.shape[d] == 1) for label in labels)]
        small = [_cut(label, flat) for label in labels]
    meta = join(metas, dim).to(node.meta["val"].dtype)
    return walk.flow(meta, join(small, dim))


def _cut(label: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        label = label.narrow(dim, 0, min(1, label.shape[dim]))
    return label


@rule("index", "index_select", "gather", "take_along_dim", identity="s*x = s*x")
def index(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = x[i]. Where data picks i, all that it may pick has one factor."""
    call: Any = node.target
    if not isinstance(x, Flow | Weight):
        return walk.keep(node, [], (x, *args), kwargs, known=True)
    picks = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    if any(pick.dtype == torch.bool for pick in picks):
        return _masked(walk, node, x, picks, len(args[0]))
    if not any(pick.is_meta for pick in picks) and not isinstance(x, Weight):
        return moved(walk, node, x, *args, **kwargs)
    name = op_name(node.target)
    dims = [d for d, pick in enumerate(args[0]) if pick is not None] if name == "index" else [
        (args[1] if name == "take_along_dim" else args[0]) % len(x.shape if isinstance(x, Weight) else x.meta.shape)]
    zeros = pytree.tree_map(
        lambda leaf: torch.zeros(leaf.shape, dtype=torch.int64) if isinstance(leaf, Tensor) else leaf, args)
    if isinstance(x, Weight):
        return _picked(x, dims, lambda coord: call(coord, *zeros, **kwargs))
    labels = walk.tie(walk.labels(x, node), dims, f"data picks elements at %{node.meta['name']}")
    labels = call(labels.expand(x.meta.shape), *zeros, **kwargs)
    return walk.flow(torch.empty(labels.shape, dtype=x.meta.dtype, device="meta"), labels, x.why)


def _masked(walk: Walk, node: fx.Node, x: Any, picks: list[Tensor], count: int) -> Any:
    """y = x[mask], as many rows as data says: two stand for them."""
    labels = walk.labels(x, node)
    if len(picks) != 1 or count != 1:
        walk.zero(x, node, f"%{node.meta['name']} picks by several masks")
    rank = picks[0].dim()
    labels = walk.tie(labels, range(rank), f"data picks elements at %{node.meta['name']}")[(0,) * rank]
    meta = torch.empty((2, *labels.shape), dtype=node.meta["val"].dtype, device="meta")
    return walk.flow(meta, labels.expand(meta.shape))


def _picked(x: Weight, dims: list[int], run: Any) -> Weight:
    """A parameter of which data picks slices: the coordinates along those dimensions are unknown."""
    coords = []
    for coord in x.coords:
        moving = any(coord.shape[d] > 1 and coord.stride(d) != 0 for d in dims)
        coords.append(torch.full((), -1).expand(run(coord).shape) if moving else _still(run(coord), coord, dims))
    return replace(x, coords=tuple(coords))


def _still(found: Tensor, coord: Tensor, dims: list[int]) -> Tensor:
    """Gathering copies: bring back that the picked dimensions, now in front of ``dims[0]``, only repeat."""
    extra = found.dim() - coord.dim() + len(dims)
    for d in range(dims[0], dims[0] + extra):
        if d < found.dim():
            found = found.narrow(d, 0, 1).expand([*found.shape[:d], found.shape[d], *found.shape[d + 1:]])
    return found


@rule("getitem", identity="s*x = s*x", always=True)
def getitem(walk: Walk, node: fx.Node, values: Any, at: int) -> Any:
    """One of several results."""
    return values[at]


@rule("constant_pad_nd", "pad", identity="s*0 = 0")
def pad(walk: Walk, node: fx.Node, x: Any, sizes: Any, *args: Any, **kwargs: Any) -> Any:
    """y = x with zeros around it. Any other constant keeps factors out."""
    call: Any = node.target
    value = next((arg for arg in args if isinstance(arg, int | float)), kwargs.get("value") or 0)
    mode = next((arg for arg in args if isinstance(arg, str)), "constant")
    if not isinstance(x, Flow) or mode != "constant" or (value != 0 and abs(value) != float("inf")):
        return walk.keep(node, [x] if isinstance(x, Flow | Weight) else [], (x, sizes, *args), kwargs, known=True)
    labels = torch.ops.aten.constant_pad_nd.default(walk.labels(x, node).contiguous(), sizes, NEUTRAL)
    walk.shifts.refuse(labels, f"%{node.meta['name']} pads with zeros, which no shift moves")
    return walk.flow(call(x.meta, sizes, *args, **kwargs), labels, x.why)


@rule("tril", "triu", identity="s*x = s*x")
def triangle(walk: Walk, node: fx.Node, x: Any, *args: Any) -> Any:
    """y = x, or 0 outside of the triangle."""
    labels = walk.labels(x, node)
    walk.shifts.refuse(labels, f"%{node.meta['name']} writes zeros, which no shift moves")
    return walk.flow(walk.shape_of(node, (x, *args), {}), labels)


@rule("copy", identity="s*x = s*x")
def copy(walk: Walk, node: fx.Node, x: Any, source: Any, *args: Any) -> Any:
    """y = x₂, in the shape of x."""
    meta = walk.shape_of(node, (x, source), {})
    if not carries(meta):
        return walk.keep(node, [source] if isinstance(source, Flow | Weight) else [], (x, source), {}, known=True)
    return walk.flow(meta, walk.labels(source, node))


@rule("slice_scatter", "select_scatter", identity="s*x = s*x")
def written(walk: Walk, node: fx.Node, x: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
    """y = x with one part of it replaced by x₂."""
    call: Any = node.target
    labels = call(walk.labels(x, node).contiguous(), walk.labels(source, node).contiguous(), *args, **kwargs)
    walk.shifts.refuse(labels, f"%{node.meta['name']} writes it beside other values")
    return walk.flow(walk.shape_of(node, (x, source, *args), kwargs), labels)


@rule("view_as_complex", identity="s*x + I*s*y = s*(x + I*y)")
def as_complex(walk: Walk, node: fx.Node, x: Any) -> Any:
    """z = x₁ + i x₂: both parts have one factor."""
    labels = walk.tie(walk.labels(x, node), [-1], f"%{node.meta['name']} pairs channels")
    walk.shifts.refuse(labels, f"%{node.meta['name']} pairs channels")
    return walk.flow(walk.shape_of(node, (x,), {}), labels[..., 0])


@rule("view_as_real", identity="s*x = s*x")
def as_real(walk: Walk, node: fx.Node, x: Any) -> Any:
    """x₁, x₂ of z = x₁ + i x₂."""
    meta = walk.shape_of(node, (x,), {})
    return walk.flow(meta, walk.labels(x, node)[..., None].expand(meta.shape))
