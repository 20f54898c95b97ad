"""SmoothQuant without data: the size of an activation is read off the parameters that make it.

    a_j = |w_j + offset| + |b_j|      behind a norm, whose own output has unit variance
    a_j = ‖W_j‖₂ + |b_j|              behind a linear: the spread of row j for inputs of unit variance
    s_j = a_j^α / max|W'_j|^(1-α)

Exact, as SmoothQuant is. It sees outlier channels that live in a norm's weight, which is where most are; it does not
see those that come from the input's own distribution. A common factor of all a_j does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qpass.graph.program import Change, Program
from qpass.methods.method import Data, Solution
from qpass.methods.smoothing import Smoothing, balance, chosen, collect, weight_max
from qpass.sites.analysis import Analysis
from qpass.sites.edits import Fold
from qpass.sites.site import Axis, Site


@dataclass(frozen=True)
class SmoothQuantFree(Smoothing):
    """Options as in ``Smoothing``."""

    name: ClassVar[str] = "smoothquant-free"
    needs_data: ClassVar[bool] = False

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """One ``Fold`` a site."""
        sites, notes = chosen(program, analysis, self.name, self.kinds, self.include, self.exclude)
        edits = []
        for site in sites:
            size = made_size(program, site)
            if size is None:
                notes.append(Change(self.name, site.name, "skipped: neither a norm nor a linear makes its channels"))
            else:
                edits.append(Fold(site, balance(size, weight_max(program, site), self.alpha)))
        return Solution(tuple(edits), notes=tuple(notes))


def made_size(program: Program, site: Site) -> Tensor | None:
    """[site.size] float32: a_j of each channel; None where a channel has no producer of a known kind."""
    result = torch.zeros(site.size)
    biases = {axis.bias for axis in site.producers if axis.bias}
    for axis in site.producers:
        if axis.role in ("row", "affine") and axis.param not in biases and len(axis.dims) == 1:
            collect(result, axis, _size(program, axis))
    return result if bool((result > 0).any()) else None


def _size(program: Program, axis: Axis) -> Tensor:
    """a_j along the axis's dimension."""
    tensor = program.tensor(axis.param).detach().float() + axis.offset
    others = [dim for dim in range(tensor.dim()) if dim not in axis.dims]
    size = torch.linalg.vector_norm(tensor, dim=others) if others else tensor.abs()
    return size + program.tensor(axis.bias).detach().float().abs() if axis.bias else size
