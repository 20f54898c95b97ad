"""Attention: q and k move against each other, v goes through to the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qpass.sites.rule import rule
from qpass.sites.rules.contraction import shape_of
from qpass.sites.system import narrowed
from qpass.sites.walk import Walk

SCORES = "(s*x)*(y/s) = x*y"


@rule("qpass.attention", identity=SCORES, always=True)
def attention(walk: Walk, node: fx.Node, q: Any, k: Any, v: Any, mask: Any, *args: Any) -> Any:
    """y = softmax(q kᵀ) v, heads of k and v shared by a group of q's."""
    return _attention(walk, node, q, k, v, mask)


@rule("qpass.eager_attention", identity=SCORES, always=True)
def eager_attention(walk: Walk, node: fx.Node, q: Any, k: Any, v: Any, mask: Any, *args: Any) -> Any:
    """As ``attention``; a cap on the scores changes nothing, as they keep their value."""
    return _attention(walk, node, q, k, v, mask)


@rule("scaled_dot_product_attention", identity=SCORES, always=True)
def sdpa(walk: Walk, node: fx.Node, q: Any, k: Any, v: Any, mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """y = softmax(q kᵀ) v."""
    return _attention(walk, node, q, k, v, kwargs.get("attn_mask", mask))


def _attention(walk: Walk, node: fx.Node, q: Any, k: Any, v: Any, mask: Any) -> Any:
    name = node.meta["name"]
    if mask is not None:
        walk.zero(mask, node, f"it is the mask of %{name}")
    q_labels, k_labels, v_labels = (walk.tie(walk.labels(value, node), [-2], f"%{name} has one factor a head's channel")
                                    for value in (q, k, v))
    if len(shape_of(q)) > 2:
        k_labels, v_labels = (_grouped(labels, shape_of(q)[-3]) for labels in (k_labels, v_labels))
    scores = walk.system.combine([(1, q_labels), (1, k_labels)], f"the scores of %{name}")
    walk.system.zero(scores, f"the scores of %{name}")
    for labels in (q_labels, k_labels):
        walk.shifts.refuse(labels, f"the scores of %{name}")
    shape = (*shape_of(q)[:-1], shape_of(v)[-1])
    return walk.flow(torch.empty(shape, dtype=node.meta["val"].dtype, device="meta"), v_labels.expand(shape))


def _grouped(labels: Tensor, heads: int) -> Tensor:
    """Each head of k and v for the query heads that read it: heads [B, K, ...] -> [B, H, ...]."""
    own = labels.shape[-3]
    return labels if own in (1, heads) else labels.repeat_interleave(heads // own, -3)


@rule("qpass.rotary", identity="(s*x)*cos(w) - (s*y)*sin(w) = s*(x*cos(w) - y*sin(w))")
def rotary(walk: Walk, node: fx.Node, x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    """A rotation of channel pairs: both of a pair have one factor."""
    name = node.meta["name"]
    for table in (cos, sin):
        walk.zero(table, node, f"it rotates in %{name}")
    labels = walk.labels(x, node)
    small = narrowed(labels).expand(*narrowed(labels).shape[:-1], labels.shape[-1])
    if interleaved:
        turned = torch.stack((small[..., 1::2], small[..., ::2]), -1).flatten(-2)
    else:
        half = labels.shape[-1] // 2
        turned = torch.cat((small[..., half:], small[..., :half]), -1)
    walk.system.equal(small, turned, f"%{name} rotates channels in pairs")
    walk.shifts.refuse(labels, f"%{name} rotates it")
    return walk.flow(x.meta, labels)
