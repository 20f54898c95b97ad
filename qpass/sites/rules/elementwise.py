"""Arithmetic, element by element."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass.graph.values import op_name
from qpass.sites.flow import Dynamic, Flow, Weight
from qpass.sites.rule import rule
from qpass.sites.system import NEUTRAL
from qpass.sites.walk import Walk

Number = int | float | bool


def _plain(value: Any) -> bool:
    """A number that is the same in every call."""
    return isinstance(value, Number) and not isinstance(value, Dynamic)


def _meta(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Tensor:
    found = walk.shape_of(node, args, kwargs)
    assert isinstance(found, Tensor)
    return found


def grouped(walk: Walk, node: fx.Node, values: list[Any]) -> tuple[list[Tensor], Any]:
    """Labels of the operands, by group where all that carry factors have the same groups."""
    over = {value.over for value in values if isinstance(value, Flow) and value.over is not None}
    if len(over) == 1 and all(_same_rows(value, values) for value in values):
        return [value.labels if isinstance(value, Flow) and value.over is not None else
                walk.labels(value, node)[None] for value in values], over.pop()  # fmt: skip
    return [walk.labels(value, node) for value in values], None


def _same_rows(value: Any, values: list[Any]) -> bool:
    """Rows of an operand meet the rows of the grouped one, and it has no factor that depends on the row's group."""
    grouped = next(v for v in values if isinstance(v, Flow) and v.over is not None)
    if isinstance(value, Flow):
        return value.meta.dim() == grouped.meta.dim()
    return not isinstance(value, Weight | Tensor)


def result(walk: Walk, node: fx.Node, meta: Tensor, labels: Tensor, over: Any, values: list[Any]) -> Any:
    if over is not None:
        return walk.flow(meta, labels.expand(labels.shape[0], *meta.shape), over=over)
    return walk.flow(meta, labels, next((v.why for v in values if isinstance(v, Flow) and v.why), ""))


@rule("add", "sub", "rsub", identity="s*x + s*y = s*(x + y)")
def add(walk: Walk, node: fx.Node, x: Any, y: Any, **kwargs: Any) -> Any:
    """y = x₁ ± x₂: both have the same factor. A parameter plus a number is a parameter with an offset."""
    name, alpha = op_name(node.target), kwargs.get("alpha", 1)
    if isinstance(x, Weight) and _plain(y) and _plain(alpha) and name in ("add", "sub"):
        return replace(x, offset=x.offset + y * alpha * (1 if name == "add" else -1))
    labels, over = grouped(walk, node, [x, y])
    made = walk.merge(labels[0], labels[1], f"%{node.meta['name']} adds it to what must not change")
    if not any(isinstance(value, Weight) for value in (x, y)):
        walk.shifts.refuse(made, f"%{node.meta['name']} adds two activations")
    return result(walk, node, _meta(walk, node, x, y, **kwargs), made, over, [x, y])


@rule("mul", "multiply", identity="(s*x)*(t*y) = (s*t)*(x*y)")
def mul(walk: Walk, node: fx.Node, x: Any, y: Any) -> Any:
    """y = x₁ x₂: the factors multiply."""
    return _product(walk, node, x, y, 1)


@rule("div", "divide", "true_divide", identity="(s*x)/(t*y) = (s/t)*(x/y)")
def div(walk: Walk, node: fx.Node, x: Any, y: Any, **kwargs: Any) -> Any:
    """y = x₁ / x₂: the factors divide. Rounding division keeps them out."""
    if kwargs.get("rounding_mode"):
        return walk.keep(node, [v for v in (x, y) if isinstance(v, Flow | Weight)], (x, y), kwargs, known=True)
    return _product(walk, node, x, y, -1)


def _product(walk: Walk, node: fx.Node, x: Any, y: Any, power: int) -> Any:
    labels, over = grouped(walk, node, [x, y])
    if power < 0:  # zero over something is zero; something over zero is nothing to count on
        labels[1] = torch.where(labels[1] == NEUTRAL, 0, labels[1])
    made = walk.system.combine([(1, labels[0]), (power, labels[1])], f"%{node.meta['name']} multiplies two factors")
    _shift_of_product(walk, node, x, y, labels, made)
    return result(walk, node, _meta(walk, node, x, y), made, over, [x, y])


def _shift_of_product(walk: Walk, node: fx.Node, x: Any, y: Any, labels: list[Tensor], made: Tensor) -> None:
    """A weight on something without a factor makes a new one, which a shift reaches by a bias; else none passes."""
    for one, other, own in ((x, y, labels[1]), (y, x, labels[0])):
        if isinstance(other, Weight) and (not isinstance(one, Flow) or walk.system.is_zero(walk.labels(one, node))):
            walk.shifts.needs_bias(own, node.meta["name"])
            return
    walk.shifts.refuse(made, f"%{node.meta['name']} multiplies it")


@rule("neg", identity="-(s*x) = s*(-x)")
def neg(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = -x."""
    return _same(walk, node, x, "negates it")


@rule("abs", identity="Abs(s*x) = s*Abs(x)")
def absolute(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = |x|."""
    return _same(walk, node, x, "takes its size")


@rule("relu", identity="Max(s*x, 0) = s*Max(x, 0)")
def relu(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = max(x, 0)."""
    return _same(walk, node, x, "cuts it at 0")


@rule("leaky_relu", identity="Max(s*x, 0) + b*Min(s*x, 0) = s*(Max(x, 0) + b*Min(x, 0))")
def leaky_relu(walk: Walk, node: fx.Node, x: Any, *slope: Any) -> Any:
    """y = max(x, 0) + b min(x, 0)."""
    return _same(walk, node, x, "bends it at 0", *slope)


@rule("clamp", "clamp_min", "clamp_max", identity="Max(s*x, 0) = s*Max(x, 0)")
def clamp(walk: Walk, node: fx.Node, x: Any, *bounds: Any, **kwargs: Any) -> Any:
    """y = min(max(x, low), high): factors pass bounds of 0 and infinity only."""
    limits = [bound for bound in (*bounds, *kwargs.values()) if bound is not None]
    loose = all(_plain(bound) and (bound == 0 or abs(bound) == float("inf")) for bound in limits)
    if not isinstance(x, Flow) or not loose:
        return walk.keep(node, [v for v in (x, *limits) if isinstance(v, Flow | Weight)], (x, *bounds), kwargs,
                          known=True)  # fmt: skip
    return _same(walk, node, x, "cuts it at 0", *bounds, **kwargs)


def _same(walk: Walk, node: fx.Node, x: Any, what: str, *args: Any, **kwargs: Any) -> Any:
    labels, over = grouped(walk, node, [x])
    walk.shifts.refuse(labels[0], f"%{node.meta['name']} {what}")
    return result(walk, node, _meta(walk, node, x, *args, **kwargs), labels[0], over, [x])


@rule("maximum", "minimum", identity="Max(s*x, s*y) = s*Max(x, y)")
def extreme(walk: Walk, node: fx.Node, x: Any, y: Any) -> Any:
    """y = max(x₁, x₂): both have the same factor."""
    made = walk.merge(walk.labels(x, node), walk.labels(y, node), f"%{node.meta['name']} compares it")
    walk.shifts.refuse(made, f"%{node.meta['name']} compares it")
    return walk.flow(_meta(walk, node, x, y), made)


@rule("pow", identity="(s*x)**2 = s**2*x**2")
def power(walk: Walk, node: fx.Node, x: Any, exponent: Any) -> Any:
    """y = xᵖ, p a number: the factor to that power."""
    if not _plain(exponent) or not isinstance(x, Flow | Weight):
        return walk.keep(node, [v for v in (x, exponent) if isinstance(v, Flow | Weight)], (x, exponent), {},
                          known=True)  # fmt: skip
    return _power(walk, node, x, float(exponent), exponent)


@rule("square", identity="(s*x)**2 = s**2*x**2")
def square(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = x²."""
    return _power(walk, node, x, 2.0)


@rule("sqrt", identity="sqrt(s*Abs(x)) = sqrt(s)*sqrt(Abs(x))")
def root(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = √x."""
    return _power(walk, node, x, 0.5)


@rule("rsqrt", identity="1/sqrt(s*Abs(y)) = 1/sqrt(s)*(1/sqrt(Abs(y)))")
def inverse_root(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = 1 / √x."""
    return _power(walk, node, x, -0.5)


@rule("reciprocal", identity="1/(s*y) = (1/s)*(1/y)")
def reciprocal(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = 1 / x."""
    return _power(walk, node, x, -1.0)


def _power(walk: Walk, node: fx.Node, x: Any, exponent: float, *args: Any) -> Any:
    labels, over = grouped(walk, node, [x])
    own = labels[0]
    if exponent <= 0:  # 1 / 0 is not 0
        own = torch.where(own == NEUTRAL, 0, own)
    walk.shifts.refuse(own, f"%{node.meta['name']} takes a power of it")
    made = walk.system.combine([(exponent, own)], f"%{node.meta['name']} takes a power of it")
    return result(walk, node, _meta(walk, node, x, *args), made, over, [x])


@rule("sign", identity="sign(s*x) = sign(x)")
def sign(walk: Walk, node: fx.Node, x: Any) -> Any:
    """y = sign(x): no factor is left."""
    walk.shifts.refuse(walk.labels(x, node), f"%{node.meta['name']} takes its sign")
    return walk.flow(_meta(walk, node, x), why=f"%{node.meta['name']} takes the sign")


@rule("where", identity="s*x = s*x")
def where(walk: Walk, node: fx.Node, condition: Any, x: Any, y: Any) -> Any:
    """y = x₁ or x₂: both have the same factor."""
    return _either(walk, node, x, y, condition, x, y)


@rule("masked_fill", identity="s*0 = 0")
def masked_fill(walk: Walk, node: fx.Node, x: Any, mask: Any, value: Any) -> Any:
    """y = x, or a number where masked; 0 and infinity go with any factor."""
    return _either(walk, node, x, value, x, mask, value)


def _either(walk: Walk, node: fx.Node, x: Any, y: Any, *args: Any) -> Any:
    why = f"%{node.meta['name']} puts it beside what must not change"
    made = walk.merge(walk.labels(x, node), walk.labels(y, node), why)
    walk.shifts.refuse(made, f"%{node.meta['name']} masks it")
    meta = _meta(walk, node, *args)
    return walk.flow(meta, made.expand(meta.shape) if made.dim() <= meta.dim() else made)


@rule("addcmul", identity="s*x + (t*y)*(s/t*w) = s*(x + y*w)")
def addcmul(walk: Walk, node: fx.Node, x: Any, y: Any, z: Any, **kwargs: Any) -> Any:
    """y = x + v x₁ x₂."""
    why = f"%{node.meta['name']} multiplies and adds"
    product = walk.system.combine([(1, walk.labels(y, node)), (1, walk.labels(z, node))], why)
    made = walk.merge(walk.labels(x, node), product, why)
    walk.shifts.refuse(made, why)
    return walk.flow(_meta(walk, node, x, y, z, **kwargs), made)
