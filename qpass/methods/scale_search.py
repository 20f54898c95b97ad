"""Scales with the least squared error, for every format: a group's outliers are clipped where that serves the others.

    min over s    Σ_k h_k |v_k - w_k|^p,    v = nearest(w / s) · s

before   param layers.0.mlp.up_proj.weight
after    param layers.0.mlp.up_proj.weight, .scale (.zero, .outer): codes are rounded with them
Not exact. By this error never worse than the scales of round to nearest, which are always among the candidates;
``qpass.numerics.scale_search`` has them for each kind of scale. Source: Frantar et al. 2023, option ``mse``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qpass.errors import NumericsError, RecipeError
from qpass.formats import Format, suggest
from qpass.graph.program import Change, Param, Program
from qpass.methods.method import Data, Solution
from qpass.methods.planned import mean_squares, planned_weights
from qpass.numerics import codec, scale_search
from qpass.numerics.group_error import weight_error
from qpass.numerics.scales import Scales
from qpass.sites.analysis import Analysis
from qpass.sites.edits import check_finite

SWEEPS = ("near", "all")


@dataclass(frozen=True)
class ScaleSearch:
    """Options of a recipe.

    Args:
        power: of the error. Frantar et al. take 2.4.
        weighted: errors count by the mean square of the input they meet, from calibration data.
        e4m3: which scales of the kind e4m3 to try: ``near`` (from an eighth of the usual one to twice that) or ``all``
            126 positive ones.
    """

    power: float = 2.0
    weighted: bool = False
    e4m3: str = "near"

    name: ClassVar[str] = "scale-search"

    def __post_init__(self) -> None:
        number = isinstance(self.power, int | float) and not isinstance(self.power, bool)
        if not number or not 0 < self.power <= 16:
            raise RecipeError(f"power is {self.power!r}", where=self.name, fix="use a number above 0, at most 16")
        if not isinstance(self.weighted, bool):
            raise RecipeError(f"weighted is {self.weighted!r}", where=self.name, fix="use true or false")
        if self.e4m3 not in SWEEPS:
            raise RecipeError(f"e4m3 is {self.e4m3!r}", where=self.name, fix=suggest(str(self.e4m3), SWEEPS))

    @property
    def needs_data(self) -> bool:
        """Only with ``weighted``."""
        return self.weighted

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """Scales of every weight that the plan gives a format.

        Raises:
            NumericsError: NaN or Inf in a weight or, with ``weighted``, in an input; scales a format cannot hold.
        """
        weights = planned_weights(program)
        if not weights:
            return Solution(notes=(Change(self.name, "-", "skipped: the plan gives no linear a format"),))
        sizes = mean_squares(program, data, weights) if self.weighted and data is not None else {}
        params: dict[str, Param] = {}
        notes, found_total, usual_total = [], 0.0, 0.0
        for weight in weights:
            value = program.tensor(weight.name).detach()
            check_finite(weight.name, value)
            try:
                found, error, usual = self._search(value, weight.format, sizes.get(weight.name))
            except NumericsError as problem:
                raise NumericsError(problem.what, where=weight.name, fix=problem.fix) from problem
            parts = found._asdict().items()
            params |= {f"{weight.name}.{part}": tensor for part, tensor in parts if tensor is not None}
            notes.append(Change(self.name, weight.name, _words(error, usual)))
            found_total, usual_total = found_total + error, usual_total + usual
        notes.append(Change(self.name, f"{len(weights)} weights", f"in all {_words(found_total, usual_total)}"))
        return Solution(params=params, notes=tuple(notes))

    def _search(self, value: Tensor, fmt: Format, weight_K: Tensor | None) -> tuple[Scales, float, float]:
        """The scales, their error, and that of round to nearest."""
        power = float(self.power)
        found = scale_search.search(value, fmt, power=power, weight_K=weight_K, every=self.e4m3 == "all")
        usual = codec.choose(value, fmt)
        error, before = (weight_error(value, one, fmt, weight_K=weight_K, power=power) for one in (found, usual))
        return found, error, before


def _words(error: float, usual: float) -> str:
    return f"error {error / usual:.3f} of round to nearest's" if usual else "no error, as with round to nearest"
