"""What methods share that learn re-scalings of a block: positive factors s = exp(t) at every site of chosen kinds.

    s starts at max|X|^α / max|W|^(1-α) over all linears that read the channel (SmoothQuant's formula), 1 elsewhere
    δ starts at the middle of the range of the activation, (max + min) / 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import nearest
from qpass.graph.program import Change, Program
from qpass.learn.block import BlockModel
from qpass.learn.settings import check_positive
from qpass.learn.transform import placed
from qpass.learn.view import View
from qpass.methods.smoothing import as_tuple, balance, check_options, collect, matches, weight_max
from qpass.methods.together import Learned
from qpass.observe.statistics import Stats
from qpass.sites.edits import Edit, Shift, reason_against
from qpass.sites.site import Site

_BIAS, _STARTS = ("keep", "add"), ("balance", "ones")


@dataclass(frozen=True)
class Scaling(Learned):
    """Options of a recipe.

    Args:
        rate: learning rate of log s and δ.
        alpha: 0 leaves the activations' outliers where they are, 1 moves them to the weights as a whole; of the start.
        start: ``balance`` (SmoothQuant's formula) or ``ones``.
        kinds: which kinds of site.
        include, exclude: globs over parameter names; a site is in if one of its parameters matches.
        shift: also learn δ where the graph can say it.
        bias: ``add`` lets a shift give a bias to what has none; ``keep`` does not.
    """

    rate: float = 5e-3
    alpha: float = 0.5
    start: str = "balance"
    kinds: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shift: bool = False
    bias: str = "keep"

    name: ClassVar[str]
    moves = True

    def __post_init__(self) -> None:
        for option in ("kinds", "include", "exclude"):
            object.__setattr__(self, option, as_tuple(getattr(self, option)))
        check_options(self.name, self.alpha, self.kinds, (*self.include, *self.exclude))
        check_positive("rate", self.rate, self.name)
        for option, legal in (("start", _STARTS), ("bias", _BIAS)):
            word = getattr(self, option)
            if word not in legal:
                raise RecipeError(f"{option} is {word!r}", where=self.name,
                                  fix=nearest(str(word), legal) or f"use one of {', '.join(legal)}")  # fmt: skip
        if not isinstance(self.shift, bool):
            raise RecipeError(f"shift is {self.shift!r}", where=self.name, fix="use true or false")

    def wanted(self, sites: Sequence[Site]) -> tuple[list[Site], list[Change]]:
        """Sites of the chosen kinds. Raises RecipeError for a glob that matches none."""
        kept, notes = [], []
        of_kind = [site for site in sites if site.kind in self.kinds]
        names = {axis.param for site in of_kind for axis in site.axes}
        for glob in (*self.include, *self.exclude):
            if of_kind and not any(matches(name, glob) for name in names):
                close = nearest(glob.replace("*", ""), sorted(names)) or "see qpass.sites(model)"
                raise RecipeError(f"{glob!r} matches no parameter of a site", where=self.name, fix=close)
        for site in of_kind:
            mine = [axis.param for axis in site.axes]
            inside = not self.include or any(matches(name, glob) for name in mine for glob in self.include)
            if inside and not any(matches(name, glob) for name in mine for glob in self.exclude):
                kept.append(site)
            else:
                notes.append(Change(self.name, site.name, "skipped: 'include' or 'exclude' says so"))
        return kept, notes

    def prepare(self, sites: Sequence[Site]) -> list[Edit]:
        """With ``bias: add``, a shift of 0 at every site that needs a bias for one."""
        if not self.shift or self.bias == "keep":
            return []
        return [Shift(site, torch.zeros(site.size)) for site in sites
                if site.columns and site.unshiftable is None and site.missing_bias]  # fmt: skip

    def mine(self, view: View) -> list[Site]:
        """The sites of a block that this method learns: those of a linear or an attention that has a scheme."""
        kept = [site for site in view.sites if site.kind in self.kinds]
        names = {weight for weight, _ in view.linears.values()}
        fresh = set(view.weights)
        touched = [(site, {axis.param for axis in site.axes}) for site in kept]
        mine = [(site, params) for site, params in touched if params & names or site.name in view.attended]
        return [site for site, params in mine if params & names <= fresh and self._included(params)]

    def _included(self, params: set[str]) -> bool:
        inside = not self.include or any(matches(name, glob) for name in params for glob in self.include)
        return inside and not any(matches(name, glob) for name in params for glob in self.exclude)

    def reaches(self, view: View) -> bool:
        """Whether the block has such a site."""
        return bool(self.mine(view))

    def attach(self, model: BlockModel, stats: Mapping[str, Stats]) -> None:
        """log s, and perhaps δ, of every such site."""
        program = model.view.program
        for site in self.mine(model.view):
            shift = self.shift and bool(site.columns) and _shiftable(program, site)
            t = model.learn(f"{self.name}.scale.{site.name}", self._start(program, site, stats).log(), self.rate)
            delta = None
            if shift:
                delta = model.learn(f"{self.name}.shift.{site.name}", _middle(site, stats), self.rate)
            model.place(placed(program, site, shift=shift), t, delta)

    def _start(self, program: Program, site: Site, stats: Mapping[str, Stats]) -> Tensor:
        ones = torch.ones(site.size, dtype=torch.float64)
        single = all(axis.powers.index.shape[0] == 1 for axis in site.columns)
        if self.start == "ones" or not site.columns or not single:
            return ones
        activation = _seen(site, stats, "absmax")
        return ones if activation is None else balance(activation, weight_max(program, site), self.alpha)


def _shiftable(program: Program, site: Site) -> bool:
    return site.unshiftable is None and reason_against(program, Shift(site, torch.zeros(site.size))) is None


def _seen(site: Site, stats: Mapping[str, Stats], what: str) -> Tensor | None:
    """[site.size]: the largest of a statistic of each channel; None where the statistics do not fit the columns."""
    result = torch.zeros(site.size)
    for axis in site.columns:
        for read in axis.reads or ("",):
            seen = getattr(stats.get(read), what, None)
            if seen is None or seen.numel() < axis.powers.index[0].numel():
                return None
            collect(result, axis, seen.cpu())
    return result


def _middle(site: Site, stats: Mapping[str, Stats]) -> Tensor:
    """[site.size]: δ at the start: the middle of the first column's input; of tied channels, of the last one's."""
    result = torch.zeros(site.size)
    axis = site.columns[0]
    seen = getattr(stats.get(axis.reads[0]) if axis.reads else None, "middle", None)
    index = axis.powers.index[0].reshape(-1)
    if seen is None or seen.numel() != index.numel() or axis.powers.index.shape[0] != 1:
        return result
    used = index >= 0
    result[index[used]] = seen.cpu()[used]
    return result
