"""Activation functions.

ReLU passes a positive factor, its square the square. No other does; but x·h(x) becomes x·h(x·r), r = 1/s, and then
passes s (FSBR's gated activation, I-LLM §3.2): exact, at the cost of one vector at run time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from qpass.sites.flow import Flow
from qpass.sites.rule import rule
from qpass.sites.rules.elementwise import grouped, result
from qpass.sites.walk import Walk

SMOOTHABLE = ("silu", "gelu", "gelu_tanh", "quick_gelu")


@rule("qpass.activation", identity="s*x*h(s*x/s) = s*(x*h(x))")
def activation(walk: Walk, node: fx.Node, x: Any, kind: str, smooth: Any = None) -> Any:
    """y = f(x)."""
    labels, over = grouped(walk, node, [x])
    return _made(walk, node, x.meta, _passed(walk, node, x, labels[0], kind, over), over, kind)


@rule("qpass.gated", identity="(s*x)*h(s*x/s)*(t*y) = s*t*(x*h(x)*y)")
def gated(walk: Walk, node: fx.Node, gate: Any, up: Any, kind: str, smooth: Any = None) -> Any:
    """y = f(gate) · up: up's factor passes; the gate's only if f passes it."""
    name = node.meta["name"]
    labels, over = grouped(walk, node, [gate, up])
    left = _passed(walk, node, gate, labels[0], kind, over)
    walk.shifts.refuse(labels[1], f"%{name} multiplies it")
    # a gate's own factor is free, and up answers for it: that is how FSBR writes its two sites
    made = walk.system.combine([(1, left), (1, labels[1])], f"%{name} multiplies two factors", pivot=2)
    walk.shifts.refuse(made, f"%{name} multiplies it")
    return _made(walk, node, gate.meta, made, over, kind)


def _made(walk: Walk, node: fx.Node, meta: Tensor, labels: Tensor, over: Any, kind: str) -> Any:
    found = result(walk, node, meta, labels, over, [])
    return replace(found, why=f"%{node.meta['name']} ({kind}) is not linear")


def _passed(walk: Walk, node: fx.Node, x: Flow, labels: Tensor, kind: str, over: Any) -> Tensor:
    name = node.meta["name"]
    walk.shifts.refuse(labels, f"%{name} ({kind}) is not linear")
    if kind == "relu":
        return labels
    if kind == "relu_squared":
        return walk.system.combine([(2, labels)], f"%{name} squares it")
    if walk.smooth and kind in SMOOTHABLE and over is None:
        vector = walk.tie(labels, range(labels.dim() - 1), f"%{name} has one factor a channel")
        walk.smooths[name] = vector.reshape(-1)
        return vector.expand(labels.shape)
    walk.system.zero(labels, f"%{name} ({kind}) is not linear")
    return labels.new_zeros(()).expand(labels.shape)
