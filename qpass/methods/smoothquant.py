"""SmoothQuant (Xiao et al. 2023): move the difficulty of outlier channels from activations to weights.

    s_j = max|X_j|^α / max|W_j|^(1-α),    X' = X / s,    W' = W · s

before   %norm = rms_norm(%x, w); %q = linear(%norm, W)
after    the same graph with w' = w / s and W' = W · s
Exact, up to one rounding of each parameter. max|W_j| is taken over all linears that read the channel, max|X_j| over
the calibration batches; channels that are tied (the query heads of one key/value head) share the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qpass.graph.program import Change, Program
from qpass.methods.method import Data, Solution
from qpass.methods.smoothing import Smoothing, balance, chosen, collect, weight_max
from qpass.observe.run import observe
from qpass.observe.statistics import Stats
from qpass.sites.analysis import Analysis
from qpass.sites.edits import Fold
from qpass.sites.site import Site


@dataclass(frozen=True)
class SmoothQuant(Smoothing):
    """Options as in ``Smoothing``."""

    name: ClassVar[str] = "smoothquant"
    needs_data: ClassVar[bool] = True

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """One ``Fold`` a site. Raises InputError or NumericsError for batches that cannot be used."""
        assert data is not None
        sites, notes = chosen(program, analysis, self.name, self.kinds, self.include, self.exclude)
        reads = {read for site in sites for axis in site.columns for read in axis.reads}
        stats = observe(program, data(), reads) if reads else {}
        edits = []
        for site in sites:
            activation = _activation_max(site, stats)
            if activation is None:
                notes.append(Change(self.name, site.name, "skipped: its input has another shape than its weights"))
            else:
                edits.append(Fold(site, balance(activation, weight_max(program, site), self.alpha)))
        return Solution(tuple(edits), notes=tuple(notes))


def _activation_max(site: Site, stats: dict[str, Stats]) -> Tensor | None:
    """[site.size] float32: the largest |x| of each channel; None where the statistics do not fit the columns."""
    result = torch.zeros(site.size)
    for axis in site.columns:
        for seen in [stats[read].absmax for read in axis.reads] or [None]:
            if seen is None or seen.numel() < axis.powers.index[0].numel():
                return None
            collect(result, axis, seen)
    return result
