"""Scales that are powers of two apart: M1, M2 (ZeroQuant-FP, Wu et al. 2023) and M2+; codes become FP8 by a shift.

    M1    Ŝ = 2^⌈log2 S⌉                           format kind m1
    M2    Ŝ = S_row / 2^⌊log2 (S_row / S)⌋           format kind m2, in the form that clips nothing
    M2+   Ŝ = B / 2^t, B and t searched            format kind m2plus

before   param layers.0.mlp.up_proj.weight
after    param layers.0.mlp.up_proj.weight, .scale (.outer): codes are rounded with them
Not exact: the scales are up to twice as large as those without the constraint, and must be chosen before any code is.
What it buys is a cast to FP8 that is exact (``qpass.numerics.shift_cast``). For that, a group is kept within 2^-14 of
its row's largest; groups that were farther are rounded with the larger scale, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import Format, nearest
from qpass.graph.program import Change, Param, Program
from qpass.methods.method import Data, Solution
from qpass.methods.planned import mean_squares, planned_weights
from qpass.numerics import groups, scales, shift_search
from qpass.numerics.group_error import weight_error
from qpass.numerics.scales import Scales, beyond_limit
from qpass.sites.analysis import Analysis
from qpass.sites.edits import check_finite

KINDS = ("m1", "m2", "m2plus")


@dataclass(frozen=True)
class PowerOfTwoScales:
    """Options of a recipe.

    Args:
        round: of m1 and m2: ``up`` (nothing is clipped), ``nearest``, ``down`` (M2 as printed, which clips), ``best2``
            (of up and down the one with the smaller error, group by group).
        base_search: give m2 the search that m2plus has.
        weighted: errors count by the mean square of the input they meet, from calibration data; only searches and
            ``best2`` compare errors.
    """

    round: str = "up"
    base_search: bool = False
    weighted: bool = False

    name: ClassVar[str] = "power-of-two-scales"

    def __post_init__(self) -> None:
        if self.round not in shift_search.ROUNDINGS:
            legal = shift_search.ROUNDINGS
            raise RecipeError(f"unknown rounding {self.round!r}", where=self.name,
                              fix=nearest(str(self.round), legal) or f"use one of {', '.join(legal)}")  # fmt: skip
        for option in ("base_search", "weighted"):
            if not isinstance(getattr(self, option), bool):
                raise RecipeError(f"{option} is {getattr(self, option)!r}", where=self.name, fix="use true or false")

    @property
    def needs_data(self) -> bool:
        """Only with ``weighted``."""
        return self.weighted

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """Scales of every weight of such a format.

        Raises:
            RecipeError: no weight has such a format.
            NumericsError: NaN or Inf in a weight or, with ``weighted``, in an input.
        """
        weights = planned_weights(program)
        mine = [weight for weight in weights if weight.format.scale in KINDS]
        if not mine:
            raise RecipeError("no weight has scales of the kind m1, m2 or m2plus", where=f"method {self.name}",
                              fix="use a scheme such as w4a8-fp-m2, or remove the method")  # fmt: skip
        sizes = mean_squares(program, data, mine) if self.weighted and data is not None else {}
        params: dict[str, Param] = {}
        notes = [Change(self.name, weight.name, f"skipped: its scales are of the kind {weight.format.scale}")
                 for weight in weights if weight.format.scale not in KINDS]  # fmt: skip
        total = Counts()
        for weight in mine:
            value = program.tensor(weight.name).detach()
            check_finite(weight.name, value)
            found = self._choose(value, weight.format, sizes.get(weight.name))
            parts = {"scale": found.scale, "outer": found.outer}
            params |= {f"{weight.name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
            counts = Counts.of(value, found, weight.format)
            notes.append(Change(self.name, weight.name, str(counts)))
            total += counts
        notes.append(Change(self.name, f"{len(mine)} weights", f"in all {total}"))
        return Solution(params=params, notes=tuple(notes))

    def _choose(self, value: Tensor, fmt: Format, weight_K: Tensor | None) -> Scales:
        search = self.base_search or fmt.scale == "m2plus"
        return shift_search.choose(value, fmt, self.round, base_search=search, weight_K=weight_K, limit=has_limit(fmt))


@dataclass(frozen=True)
class Counts:
    """What the constraint cost.

    Attributes:
        error, real: Σ (v - w)² with the chosen scales, and with real ones in float32 that just hold the largest value.
        limited, groups: groups that were beyond the limit, of how many.
    """

    error: float = 0.0
    real: float = 0.0
    limited: int = 0
    groups: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.error + other.error, self.real + other.real, self.limited + other.limited,
                      self.groups + other.groups)  # fmt: skip

    def __str__(self) -> str:
        ratio = f"{self.error / self.real:.3f} of" if self.real else "0, as"
        text = f"squared error {ratio} that of real scales; {beyond_limit(self.limited, self.groups)}"
        return text + (", rounded at that limit" if self.limited else "")

    @staticmethod
    def of(value: Tensor, found: Scales, fmt: Format) -> Counts:
        """Of one weight [N, K]."""
        amax, plain = groups.group_amax(value, fmt), replace(fmt, scale="f32")
        limited = int(shift_search.limited(amax, fmt).sum()) if has_limit(fmt) else 0
        real = weight_error(value, Scales(scales.real(amax, fmt)), plain)
        return Counts(weight_error(value, found, fmt), real, limited, found.scale.numel())


def has_limit(fmt: Format) -> bool:
    """M2's shifts are stored in four bits; M1's are limited only where a cast to FP8 is possible."""
    return fmt.scale != "m1" or fmt.bits <= 4
