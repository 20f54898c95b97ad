"""Activation functions.

ReLU passes a positive factor, its square the square. No other does; but x·h(x) becomes x·h(x·r), r = 1/s, and then
passes s (FSBR's gated activation, I-LLM §3.2): exact, at the cost of one vector at run time.
"""

from __future__ import annotations

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
    return result(walk, node, x.meta, _passed(walk, node, x, labels[0], kind, over), over, [x])


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
    return result(walk, node, gate.meta, made, over, [gate, up])


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


for _op in ("silu", "gelu", "sigmoid", "tanh", "exp", "log", "softplus", "elu", "mish", "hardswish", "hardsigmoid",
            "hardtanh", "relu6", "selu", "celu", "log1p", "expm1", "erf", "cos", "sin", "log_sigmoid", "logsumexp", "prelu",
            "glu", "topk", "sort", "argmax", "argmin", "argsort", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf",
            "cumprod", "logical_not", "logical_and", "logical_or", "floor", "ceil", "round", "remainder", "fmod",
            "floor_divide", "bincount", "histc", "one_hot", "multinomial", "nonzero", "isfinite", "logcumsumexp", "var",
            "std", "group_norm", "batch_norm", "native_layer_norm", "instance_norm", "local_response_norm", "normal_",
            "log2", "exp2", "arange", "any", "all", "logaddexp", "xlogy", "threshold", "logit", "searchsorted", "trunc"):  # fmt: skip

    @rule(_op, identity="x = x")
    def _kept(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        """y = f(x), f not homogeneous: no factor goes in."""
        from torch.utils import _pytree as pytree

        from qpass.sites.flow import Weight

        values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Flow | Weight)]
        return walk._keep(node, values, args, kwargs, known=True)


for _op in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
            "sym_size", "sym_numel", "rand_like", "randn_like", "new_tensor", "bernoulli"):

    @rule(_op, identity="x = x")
    def _shaped(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
        """A new value of the size of x, which does not depend on what x holds."""
        import torch

        from qpass.sites.system import NEUTRAL

        found = walk.shape_of(node, (x, *args), kwargs)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            return found
        zeros = "zeros" in str(node.target) or "empty" in str(node.target)
        labels = torch.tensor(NEUTRAL if zeros else 0).expand(found.shape)
        return walk.flow(found, labels, "it is a constant")
