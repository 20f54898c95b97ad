"""Scales that are powers of two apart: M1 and M2 with every way of rounding, and M2+, which searches the row's base.

    M1    Ŝ = 2^e                      e about log2 S
    M2    Ŝ = S_row / 2^t              t about log2 (S_row / S), from 0 to 14, S_row the largest S of the row
    M2+   Ŝ = B / 2^t                  B = S_row · 2^u, u from -0.75 to 0.25 in steps of 1/16, the best of them

    up        the next power of two that is at least S: nothing is clipped (t = ⌊log2 (S_row / S)⌋)
    nearest   the nearest by ratio
    down      the next that is at most S (t = ⌈log2 (S_row / S)⌉, as printed): up to half of a group's range is clipped
    best2     of up and down the one with the smaller error

M2+ takes the better of two e at each base. u = 0 is among them and wins ties: never worse than M2 with best2. The range
of u is one octave: what another base would give is one of these with other shifts.

Sources: ZeroQuant-FP (Wu et al. 2023) for M1 and M2, where M2 is printed in the form "down"; the search is our own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import Format, nearest
from qpass.numerics import groups, powers, scales
from qpass.numerics.group_error import group_error, input_weights
from qpass.numerics.scales import MAX_SHIFT, Scales

ROUNDINGS = ("up", "nearest", "down", "best2")
STEPS = 16
BASES = (0, *(step for step in range(-12, 5) if step))
"""u · 16; 0 first, so that a base must be strictly better to be taken."""


def choose(
    w_NK: Tensor, fmt: Format, rounding: str = "up", *, base_search: bool = False, weight_K: Tensor | None = None,
    power: float = 2.0, limit: bool = False,
) -> Scales:  # fmt: skip
    """Scales of a format of the kind m1, m2 or m2plus. Bounded memory: a few rows at a time.

    Args:
        w_NK: any float dtype.
        rounding: of ``ROUNDINGS``; with ``base_search`` it is best2.
        base_search: search the base of each row. M1 has none.
        weight_K: of the squared errors, see ``group_error``.
        power: of the error.
        limit: keep M1's scales within 2^14 of the row's largest, so that codes become FP8 by a shift. M2 always is.

    Raises:
        RecipeError: another rounding, or another kind of scale.
    """
    if rounding not in ROUNDINGS:
        raise RecipeError(f"unknown rounding {rounding!r}",
                          fix=nearest(rounding, ROUNDINGS) or f"use one of {', '.join(ROUNDINGS)}")  # fmt: skip
    if fmt.scale not in ("m1", "m2", "m2plus"):
        raise RecipeError(f"scales of the kind {fmt.scale}", where=str(fmt), fix="use m1, m2 or m2plus")
    amax = groups.group_amax(w_NK, fmt)
    weight = input_weights(weight_K, fmt, w_NK.device)
    found = []
    for rows, scale_rows in groups.chunks(w_NK, fmt):
        some = _Rows(groups.parts(w_NK[rows].float(), fmt), amax[scale_rows], fmt, weight, power, limit)
        found.append(some.searched() if base_search and fmt.scale != "m1" else some.rounded(rounding))
    exponents, bases = (torch.cat(part) for part in zip(*found))
    if fmt.scale != "m1":
        return Scales((-exponents).to(torch.uint8), outer=bases)
    byte = torch.where(torch.isfinite(amax), powers.to_e8m0(exponents), powers.NAN)
    return Scales(torch.where(amax == 0, 0, byte).to(torch.uint8))


def limited(amax: Tensor, fmt: Format) -> Tensor:
    """[R, G] bool: groups that are too small beside their row's largest for a shift to make their codes FP8."""
    if fmt.scale != "m1":
        return scales.beyond(amax, fmt)
    scale = scales.real(amax, fmt)
    return (powers.ceil_log2(scales.usable(scale, amax)) < _least_exponent(scale, amax)) & (amax > 0)


def _least_exponent(scale: Tensor, amax: Tensor) -> Tensor:
    """[R, 1] int32: 14 below the e of the row's largest group; groups of zeros do not count."""
    exponent = powers.ceil_log2(scales.usable(scale, amax)).masked_fill(amax == 0, -powers.BIAS)
    return exponent.amax(1, keepdim=True) - MAX_SHIFT


class _Rows:
    """Some rows of a weight. Scales are base · 2^e, with the base of M1 being 1; e is int32, [R, G]."""

    def __init__(
        self, cut: Tensor, amax: Tensor, fmt: Format, weight: Tensor | None, power: float, limit: bool
    ) -> None:  # fmt: skip
        self.cut, self.amax, self.fmt, self.weight, self.power, self.limit = cut, amax, fmt, weight, power, limit
        self.scale = scales.real(amax, fmt)
        self.base = scales.row_base(self.scale, amax) if fmt.scale != "m1" else torch.ones_like(self.scale[:, :1])

    def rounded(self, rounding: str) -> tuple[Tensor, Tensor]:
        """e and base, without a search for the base."""
        up, down = self._neighbors(self.base)
        if rounding == "best2":
            return self._better(up, down, self.base)[0], self.base
        if rounding == "nearest":  # by ratio: the products are exact in float64
            middle = self._times(self.base, up).double() * self._times(self.base, down).double()
            return torch.where(middle <= self.scale.double() ** 2, up, down), self.base
        return up if rounding == "up" else down, self.base

    def searched(self) -> tuple[Tensor, Tensor]:
        """e and base of M2+: the base with the smallest error of the row, each group at the better of two e."""
        exponent, least = self._better(*self._pair(self.base), self.base)
        base = self.base
        for step in BASES[1:]:
            other = (self.base.double() * 2.0 ** (step / STEPS)).to(torch.float32)
            found, error = self._better(*self._pair(other), other)
            better = error.sum(1, keepdim=True) < least.sum(1, keepdim=True)
            exponent, least = torch.where(better, found, exponent), torch.where(better, error, least)
            base = torch.where(better, other, base)
        return exponent, base

    def _neighbors(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """e of up and of down; the same where S is a power of two from the base, or where a limit is."""
        if self.fmt.scale == "m1":
            usable = scales.usable(self.scale, self.amax)
            up, down = powers.ceil_log2(usable), powers.floor_log2(usable)
            least = _least_exponent(self.scale, self.amax) if self.limit else -powers.BIAS
            return up.clamp(min=least), down.clamp(min=least)
        up = -scales.shifts_up(base, self.scale, self.amax)
        exact = (base.double() * torch.exp2(up.double()) == self.scale.double()) | (self.amax == 0)
        return up.clamp(-MAX_SHIFT, 0), torch.where(exact, up, up - 1).clamp(-MAX_SHIFT, 0)

    def _pair(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """e of up and the one below, also where S is a power of two from the base: the largest of a row always is."""
        up = -scales.shifts_up(base, self.scale, self.amax)
        return up.clamp(-MAX_SHIFT, 0), (up - 1).clamp(-MAX_SHIFT, 0)

    def _better(self, up: Tensor, down: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """The e with the smaller error, up where they are equal, and that error."""
        errors = [
            group_error(self.cut, self._times(base, e), self.fmt, weight=self.weight, power=self.power)
            for e in (up, down)
        ]  # fmt: skip
        take = errors[1] < errors[0]
        return torch.where(take, down, up), torch.where(take, errors[1], errors[0])

    @staticmethod
    def _times(base: Tensor, exponent: Tensor) -> Tensor:
        """base · 2^e: exact."""
        return base * powers.exp2(exponent)
