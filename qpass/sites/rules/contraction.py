"""Products that sum over channels: linear, matmul and their kin.

With a parameter, its columns take up the factors of the input and its rows make new ones. With two activations, the
factors of each channel that is summed over must cancel, or be the same for all.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from qpass.sites.flow import Flow, Use, Weight, varies
from qpass.sites.rule import rule
from qpass.sites.walk import Walk

LINEAR = "(s*w/t)*(t*x) = s*(w*x)"


@rule("linear", identity=LINEAR)
def linear(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x Wᵀ + b: W' = diag(s) W diag(1/t), b' = s b."""
    if not isinstance(weight, Weight):
        return add_bias(walk, node, activations(walk, node, x, flip(weight)), bias)
    return by_parameter(walk, node, x, weight.moved(lambda coord: coord.mT), bias)


@rule("addmm", identity=LINEAR)
def addmm(walk: Walk, node: fx.Node, bias: Any, x: Any, weight: Any, **kwargs: Any) -> Any:
    """y = b + x W."""
    return matmul(walk, node, x, weight, bias)


@rule("baddbmm", identity=LINEAR)
def baddbmm(walk: Walk, node: fx.Node, bias: Any, x: Any, weight: Any, **kwargs: Any) -> Any:
    """y = β b + α x W."""
    return matmul(walk, node, x, weight, bias if kwargs.get("beta", 1) else None)


@rule("matmul", "mm", "bmm", identity=LINEAR)
def matmul(walk: Walk, node: fx.Node, x: Any, y: Any, bias: Any = None) -> Any:
    """y = x₁ x₂."""
    if isinstance(y, Weight) and len(y.shape) > 1 and not isinstance(x, Weight):
        return by_parameter(walk, node, x, y, bias)
    if isinstance(x, Weight) and len(x.shape) > 1 and not isinstance(y, Weight) and len(shape_of(y)) > 1:
        found = by_parameter(walk, node, flip(y), x.moved(lambda coord: coord.mT), None)
        return add_bias(walk, node, flip(found), bias)
    return add_bias(walk, node, activations(walk, node, x, y), bias)


def flip(value: Any) -> Any:
    """The matrix transposed."""
    return replace(value, meta=value.meta.mT, labels=value.labels.mT) if isinstance(value, Flow) else value.mT


def shape_of(value: Any) -> Any:
    """Of a value of any kind."""
    return value.meta.shape if isinstance(value, Flow) else value.shape


@rule("dot", "mv", identity=LINEAR)
def dot(walk: Walk, node: fx.Node, x: Any, y: Any) -> Any:
    """y = x₁ · x₂."""
    return activations(walk, node, x, y)


def activations(walk: Walk, node: fx.Node, x: Any, y: Any) -> Any:
    """x₁ [.., M, K] times x₂ [.., K, N]: label(m, k) + label(k, n) is the same for all k."""
    name = node.meta["name"]
    a, b = walk.labels(x, node), walk.labels(y, node)
    one, other = a.dim() == 1, b.dim() == 1
    a, b = a[None] if one else a, b[:, None] if other else b
    why = f"%{name} sums over it"
    if not (isinstance(x, Flow) and x.rows_sum):
        walk.shifts.refuse(b, f"%{name} multiplies it")
    walk.shifts.refuse(a, f"%{name} multiplies it")
    total = walk.system.combine([(1, a[..., :, :, None]), (1, b[..., None, :, :])], why)
    labels = walk.tie(total, [-2], why)[..., 0, :]
    labels = labels[..., 0, :] if one else labels
    labels = labels[..., 0] if other else labels
    meta = _product_meta(x, y, node)
    return walk.flow(meta, labels.expand(meta.shape))


def _product_meta(x: Any, y: Any, node: fx.Node) -> Tensor:
    shapes = [torch.empty(shape_of(value), device="meta") for value in (x, y)]
    return torch.matmul(*shapes).to(node.meta["val"].dtype)


def by_parameter(walk: Walk, node: fx.Node, x: Any, weight: Weight, bias: Any) -> Any:
    """x [.., M, K] times a view of a parameter [.., K, N]."""
    name, rank = node.meta["name"], len(weight.shape)
    batch = [d for d in range(rank - 2) if any(d in varies(coord) for coord in weight.coords)]
    labels, why = _channels(walk, node, x, weight, batch)
    column = labels[..., :, None]  # [.., K, 1]
    lengths = [weight.shape[d] if d in batch else 1 for d in range(rank - 2)]
    row = walk.system.fresh(*lengths, 1, weight.shape[-1])
    use = Use(weight.name, weight.sizes, weight.coords, weight.offset,
              [("row", row.expand(weight.shape)), ("column", (-plain(column)).expand(weight.shape))], name,
              reads=input_name(node, x))  # fmt: skip
    walk.use(use)
    walk.columns.append((name, labels, why))
    shape = torch.matmul(torch.empty(shape_of(x), device="meta"), torch.empty(weight.shape, device="meta")).shape
    dims = [d for d in range(rank - 2)]
    made = row.reshape([*(lengths[d] for d in dims), 1, weight.shape[-1]])
    made = made[..., 0, :] if len(shape_of(x)) == 1 else made
    result = walk.flow(torch.empty(shape, dtype=node.meta["val"].dtype, device="meta"), made.expand(shape))
    flat = len(weight.sizes) == 2
    if not flat:
        walk.shifts.refuse(labels, f"%{name} has no bias of its own for each expert")
        walk.shifts.refuse(row, f"%{name} has no bias of its own for each expert")
    elif bias is None:
        walk.shifts.needs_bias(labels, name)
        walk.shifts.needs_bias(row, name)
    elif isinstance(bias, Weight):
        use.bias = bias.name
    else:
        for part in (row, labels):
            walk.shifts.refuse(part, f"the bias of %{name} is computed")
    return add_bias(walk, node, result, bias)


def plain(labels: Tensor) -> Tensor:
    """Labels that can be negated: what is NEUTRAL has no factor to answer."""
    return torch.where(labels < -(2**61), 0, labels)


def _channels(walk: Walk, node: fx.Node, x: Any, weight: Weight, batch: list[int]) -> tuple[Tensor, str]:
    """Labels of x by channel, [.., K]: the same for all rows that meet one part of the parameter."""
    labels = walk.labels(x, node)
    why = x.why if isinstance(x, Flow) else "it is a constant"
    rank = len(weight.shape)
    labels = labels.reshape([1] * (rank - labels.dim()) + list(labels.shape)) if labels.dim() < rank else labels
    kept = {labels.dim() - rank + d for d in batch}
    rows = [d for d in range(labels.dim() - 1) if d not in kept]
    labels = walk.tie(labels, rows, f"%{node.meta['name']} has one factor a channel")
    extra = labels.dim() - rank
    labels = labels[(0,) * extra] if extra else labels
    return labels.select(-2, 0), why


def input_name(node: fx.Node, x: Any) -> tuple[str, ...]:
    """Value name of the activation that a parameter meets."""
    names = [str(arg.meta["name"]) for arg in node.args if isinstance(arg, fx.Node) and arg.op != "get_attr"]
    return tuple(names[:1]) if isinstance(x, Flow) else ()


def add_bias(walk: Walk, node: fx.Node, value: Flow, bias: Any) -> Any:
    """A bias has the factors of what it is added to."""
    if bias is None:
        return value
    labels = walk.labels(bias, node)
    made = walk.merge(value.labels, labels.expand(value.meta.shape), f"the bias of %{node.meta['name']}")
    return replace(value, labels=made)


@rule("einsum", identity=LINEAR)
def einsum(walk: Walk, node: fx.Node, equation: str, operands: Any, **kwargs: Any) -> Any:
    """y = Σ over the indices that the result does not have: a matrix product once the indices are in order."""
    terms = spelled(equation, [len(shape_of(value)) for value in operands])
    if terms is None:
        values = [value for value in operands if isinstance(value, Flow | Weight)]
        return walk.keep(node, values, (equation, operands), kwargs, known=True)
    (one, other), result = terms
    x, y = operands
    if isinstance(x, Weight):
        (x, one), (y, other) = (y, other), (x, one)
    batch = [letter for letter in result if letter in one and letter in other]
    summed = [letter for letter in one if letter in other and letter not in result]
    rows, columns = ([letter for letter in name if letter not in batch + summed] for name in (one, other))
    sizes = {letter: size for name, value in ((one, x), (other, y)) for letter, size in zip(name, shape_of(value))}
    left = _matrix(walk, node, x, one, [batch, rows, summed], sizes)
    right = _matrix(walk, node, y, other, [batch, summed, columns], sizes)
    found = by_parameter(walk, node, left, right, None) if isinstance(right, Weight) and isinstance(left, Flow) else (
        activations(walk, node, left, right))  # fmt: skip
    order = batch + rows + columns
    spread = [sizes[letter] for letter in order]

    def back(value: Tensor) -> Tensor:
        return value.reshape(spread).permute([order.index(letter) for letter in result])

    return walk.move(found, node, back)


def spelled(equation: str, ranks: list[int]) -> tuple[list[str], str] | None:
    """Letters of the two operands and of the result, an ellipsis written out; None for what is no matrix product."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if not arrow or len(names) != 2:
        return None
    extra = {max(0, rank - len(name.replace("...", ""))) for name, rank in zip(names, ranks) if "..." in name}
    if len(extra) > 1:
        return None
    letters = "ABCDEFGH"[: extra.pop()] if extra else ""
    names = [name.replace("...", letters) for name in names]
    result = result.replace("...", letters)
    single = all(len(set(name)) == len(name) for name in (*names, result))
    lone = set(names[0]) ^ set(names[1])
    return (names, result) if single and lone <= set(result) else None


def _matrix(walk: Walk, node: fx.Node, value: Any, name: str, groups: list[list[str]], sizes: dict[str, int]) -> Any:
    """A value with its indices in three groups, each one dimension."""
    order = [name.index(letter) for group in groups for letter in group]
    shape = [prod(sizes[letter] for letter in group) for group in groups]

    def move(tensor: Tensor) -> Tensor:
        return tensor.permute(order).reshape(shape)

    return walk.move(value, node, move) if isinstance(value, Flow | Weight) else move(value)
