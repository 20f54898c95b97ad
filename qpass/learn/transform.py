"""Re-scalings and shifts of a block's parameters that gradients flow through: what ``sites.edits`` does, in float32.

    Shift   consumers' biases gain W δ, producers' biases lose δ
    Fold    every axis is multiplied by its powers of s = exp(t); activations with a gate get r
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from qpass.graph.program import Program
from qpass.sites.biases import Biases
from qpass.sites.edited import Scale, scale_of
from qpass.sites.edits import along
from qpass.sites.site import Axis, Site


@dataclass(frozen=True)
class Placed:
    """A site of a block, and what its edits need to know of the graph.

    Args:
        site: all of it within one block.
        axes: what a fold multiplies.
        makers: (parameter, axis) of the biases that a shift lowers; empty where no shift is learned.
        gains: (weight's axis, name of the bias that gains W δ).
    """

    site: Site
    axes: tuple[Axis, ...]
    makers: tuple[tuple[str, Axis], ...] = ()
    gains: tuple[tuple[Axis, str], ...] = ()
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)

    @property
    def params(self) -> list[str]:
        """All parameters that an edit of the site changes."""
        names = [axis.param for axis in self.axes]
        return list(dict.fromkeys([*names, *(name for name, _ in self.makers), *(name for _, name in self.gains)]))

    def shift(self, values: dict[str, Tensor], delta: Tensor) -> None:
        """x' = x - δ, on ``values`` by name."""
        for axis, bias in self.gains:
            weight = values[axis.param]
            moved = along(axis, delta, weight.shape).to(weight.dtype)
            product = weight @ moved if axis.dims == (1,) else moved @ weight
            rows = dict(axis.where).get(1 - axis.dims[0])
            if rows is not None:
                product = torch.zeros_like(product).index_copy(0, rows.to(product.device), product[rows])
            values[bias] = values[bias] + product
        for name, axis in self.makers:
            values[name] = values[name] - along(axis, delta, values[name].shape).to(values[name].dtype)

    def fold(self, values: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """x' = x / exp(t), on ``values`` by name; returns r of the activations with a gate, by value name."""
        s = t.exp()
        for axis in self.axes:
            like = values[axis.param]
            step = _narrow(scale_of(axis, s, like.shape), like.dtype)
            values[axis.param] = step.on(like, 0, ())
        return {item.node: item.powers.factor(s).to(t.dtype) for item in self.site.smooths}


def _narrow(step: Scale, dtype: torch.dtype) -> Scale:
    return replace(step, factor=step.factor.to(dtype))


def placed(program: Program, site: Site, *, shift: bool) -> Placed:
    """A site with the biases that its edits touch. ``shift``: only where ``edits.reason_against`` knows none."""
    biases = Biases(program.graph)
    shapes = {axis.param: program.like(axis.param).shape for axis in site.axes}
    if not shift:
        return Placed(site, site.axes, shapes=shapes)
    makers = [axis for axis in site.axes if axis.role in ("row", "affine") and not biases.adds(axis)]
    gains, done = [], set()
    for axis in site.columns:
        for node in biases.readers(axis):
            if (axis.param, node) not in done:
                done.add((axis.param, node))
                gains.append((axis, _need(biases.at(node))))
    return Placed(site, site.axes, tuple((_need(biases.of(axis)), axis) for axis in makers), tuple(gains), shapes)


def _need(bias: str | None) -> str:
    assert bias is not None
    return bias
