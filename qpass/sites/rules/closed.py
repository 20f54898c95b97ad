"""Ops that no factor passes, and ops that read nothing but a size.

They are listed so that "has no rule" is kept for what nobody has thought about.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qpass.sites.flow import Flow, Weight, carries
from qpass.sites.rule import rule
from qpass.sites.system import NEUTRAL
from qpass.sites.walk import Walk

CLOSED = (
    "silu", "gelu", "sigmoid", "tanh", "exp", "log", "softplus", "elu", "mish", "hardswish", "hardsigmoid", "hardtanh",
    "relu6", "selu", "celu", "log1p", "expm1", "erf", "cos", "sin", "log_sigmoid", "logsumexp", "prelu", "glu", "topk",
    "sort", "argmax", "argmin", "argsort", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "cumprod",
    "logical_not", "logical_and", "logical_or", "floor", "ceil", "round", "remainder", "fmod", "floor_divide",
    "bincount", "histc", "one_hot", "multinomial", "nonzero", "isfinite", "logcumsumexp", "var", "std", "group_norm",
    "batch_norm", "native_layer_norm", "instance_norm", "log2", "exp2", "any", "all", "logaddexp", "xlogy", "threshold",
    "logit", "searchsorted", "trunc", "polar", "fft_fftn", "bernoulli", "bitwise_not", "item", "_local_scalar_dense",
)  # fmt: skip
SIZED = ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
         "sym_size", "sym_numel", "rand_like", "randn_like")  # fmt: skip


@rule(*CLOSED, identity="x = x")
def closed(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """y = f(x), f not homogeneous: no factor goes in."""
    values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Flow | Weight)]
    return walk.keep(node, values, args, kwargs, known=True)


@rule(*SIZED, identity="x = x")
def sized(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A new value of the size of x, which does not depend on what x holds."""
    found = walk.shape_of(node, (x, *args), kwargs)
    if not isinstance(found, Tensor) or not carries(found):
        return found
    zeros = "zeros" in str(node.target) or "empty" in str(node.target)
    return walk.flow(found, torch.tensor(NEUTRAL if zeros else 0).expand(found.shape), "it is a constant")
