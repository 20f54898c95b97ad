"""Normalisations: no factor goes in; the weight, and the bias with it, makes new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from qpass.sites.flow import Flow, Weight
from qpass.sites.rule import rule
from qpass.sites.walk import Walk


@rule("qpass.rms_norm", identity="s*w*x = s*(w*x)")
def rms_norm(walk: Walk, node: fx.Node, x: Any, weight: Any, eps: float, offset: float = 0.0, *args: Any) -> Any:
    """y = (c + w) x / rms(x): (c + w') = s (c + w)."""
    if offset and isinstance(weight, Weight):
        weight = replace(weight, offset=weight.offset + offset)
    elif offset and weight is not None:
        walk.zero(weight, node, f"%{node.meta['name']} adds {offset} to it")
    return _normalised(walk, node, x, weight, None)


@rule("rms_norm", "_fused_rms_norm", identity="s*w*x = s*(w*x)")
def aten_rms_norm(walk: Walk, node: fx.Node, x: Any, shape: Any, weight: Any = None, *args: Any) -> Any:
    """y = w x / rms(x)."""
    return _normalised(walk, node, x, weight, None)


@rule("layer_norm", identity="s*w*x + s*b = s*(w*x + b)")
def layer_norm(walk: Walk, node: fx.Node, x: Any, shape: Any, weight: Any = None, bias: Any = None, *args: Any) -> Any:
    """y = w (x - mean) / std + b."""
    return _normalised(walk, node, x, weight, bias)


@rule("qpass.layer_norm", identity="s*w*x + s*b = s*(w*x + b)")
def qpass_layer_norm(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """y = w (x - mean) / std + b."""
    return _normalised(walk, node, x, weight, bias)


def _normalised(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any) -> Any:
    name = node.meta["name"]
    walk.zero(x, node, f"%{name} normalises it")
    meta = x.meta if isinstance(x, Flow) else torch.empty(x.shape, dtype=node.meta["val"].dtype, device="meta")
    if weight is None:
        if bias is not None:
            walk.zero(bias, node, f"the bias of %{name}, which has no weight")
        return walk.flow(meta, why=f"%{name} has no weight that could make a factor")
    labels = walk.labels(weight, node).expand(meta.shape)
    if bias is not None:
        walk.system.equal(walk.labels(weight, node), walk.labels(bias, node), f"weight and bias of %{name}")
        if not isinstance(bias, Weight):
            walk.shifts.refuse(labels, f"the bias of %{name} is computed")
        elif isinstance(weight, Weight):
            walk.use_of(weight).bias = bias.name
    else:
        walk.shifts.needs_bias(labels, name)
    return walk.flow(meta, labels)
