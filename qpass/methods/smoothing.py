"""What methods that balance activations against weights share: which sites, and the largest weight of a channel."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import nearest
from qpass.graph.program import Change, Program
from qpass.sites.analysis import Analysis
from qpass.sites.site import Axis, Site

KINDS = ("linear-norm", "serial linear-linear", "parallel linear-linear", "gated activation", "other")
DEFAULT_KINDS = ("linear-norm", "serial linear-linear")
FLOOR = 1e-5


@dataclass(frozen=True)
class Smoothing:
    """Options of a recipe, for methods that balance activations against weights.

    Args:
        alpha: 0 leaves the activations' outliers where they are, 1 moves them to the weights as a whole.
        kinds: which kinds of site to act on.
        include, exclude: globs over parameter names; a site is in if one of its parameters matches.
    """

    alpha: float = 0.5
    kinds: tuple[str, ...] = DEFAULT_KINDS
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    name: ClassVar[str]
    needs_data: ClassVar[bool]

    def __post_init__(self) -> None:
        for option in ("kinds", "include", "exclude"):
            object.__setattr__(self, option, as_tuple(getattr(self, option)))
        check_options(self.name, self.alpha, self.kinds, (*self.include, *self.exclude))


def check_options(method: str, alpha: float, kinds: Sequence[str], globs: Sequence[str]) -> None:
    """Raise RecipeError for options that cannot be meant."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise RecipeError(f"alpha is {alpha!r}", where=method, fix="use a number from 0 to 1")
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"unknown kind of site {kind!r}", where=method,
                              fix=nearest(str(kind), KINDS) or f"use one of {', '.join(KINDS)}")
    for glob in globs:
        if not isinstance(glob, str):
            raise RecipeError(f"the glob {glob!r} is no text", where=method, fix="write names of parameters")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Options come as one word or as a list of them."""
    return (value,) if isinstance(value, str) else tuple(value)


def chosen(
    program: Program, analysis: Analysis, method: str, kinds: Sequence[str], include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[list[Site], list[Change]]:  # fmt: skip
    """The sites a method acts on, and for each of those kinds that it leaves out the reason.

    Raises:
        RecipeError: a glob that matches no weight of any site.
    """
    of_kind = analysis.pick(lambda site: site.kind in kinds and bool(site.columns))
    _check_globs(of_kind, method, (*include, *exclude))
    sites, notes = [], []
    for site in of_kind:
        reason = _reason_against(program, site, include, exclude)
        if reason is None:
            sites.append(site)
        else:
            notes.append(Change(method, site.name, f"skipped: {reason}"))
    return sites, notes


def _check_globs(sites: Sequence[Site], method: str, globs: Sequence[str]) -> None:
    names = list(dict.fromkeys(axis.param for site in sites for axis in site.axes))
    for glob in globs:
        if not any(matches(name, glob) for name in names):
            close = nearest(glob.replace("*", ""), names) or f"name one of {', '.join(names[:3]) or 'no site'}"
            raise RecipeError(f"{glob!r} matches no parameter of a site", where=method, fix=close)


def matches(name: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name.removesuffix(".weight"), glob)


def _reason_against(program: Program, site: Site, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    names = [axis.param for axis in site.axes]
    if include and not any(matches(name, glob) for name in names for glob in include):
        return "no line of 'include' matches it"
    for glob in exclude:
        if any(matches(name, glob) for name in names):
            return f"'exclude' says so ({glob})"
    if any(axis.powers.index.shape[0] != 1 or bool((axis.powers.power.abs() > 1).any()) for axis in site.columns):
        return "a channel follows several factors, or the square of one"
    schemes = [getattr(_plan(program, axis.node), "scheme", None) for axis in site.columns]
    if not any(schemes) and any(_plan(program, axis.node, "experts") for axis in site.columns):
        return "its consumers are experts, which the method does not look at"
    if not any(schemes):
        return "its consumers all stay in float: nothing to gain"
    if not any(scheme.input for scheme in schemes if scheme):
        return "its consumers take float inputs: nothing to gain"
    return None


def _plan(program: Program, node: str, key: str = "plan") -> Any:
    try:
        return program.value(node).meta.get(key)
    except KeyError:
        return None


def weight_max(program: Program, site: Site) -> Tensor:
    """[site.size] float32: the largest |w| of all columns that a channel of the site meets; 0 where it meets none."""
    result = torch.zeros(site.size)
    for axis in site.columns:
        weight = program.tensor(axis.param).detach()
        for dim, indices in axis.where:
            if dim not in axis.dims:
                weight = weight.index_select(dim, indices.to(weight.device))
        others = [dim for dim in range(weight.dim()) if dim not in axis.dims]
        collect(result, axis, weight.abs().amax(others).float() if others else weight.abs().float())
    return result


def collect(result: Tensor, axis: Axis, values: Tensor) -> None:
    """Put the maximum of ``values``, one for each channel along the axis, into the site's channels they belong to."""
    index = axis.powers.index[0].reshape(-1).to(values.device)
    values = values.reshape(-1)
    for dim, indices in axis.where:
        if dim in axis.dims and len(index) != len(values):
            values = values[indices.to(values.device)]
        elif dim in axis.dims and len(indices) != len(index):
            inside = torch.zeros(len(index), dtype=torch.bool)
            inside[indices.cpu()] = True
            index = torch.where(inside.to(index.device), index, -1)
    used = index >= 0
    found = torch.zeros_like(result).scatter_reduce(0, index[used].cpu(), values[used].cpu().to(result), "amax")
    torch.maximum(result, found, out=result)


def balance(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s = max|X|^α / max|W|^(1 - α), each with the floor 1e-5; 1 where no weight is met. All [size] float64."""
    ratio = activation.double().clamp(min=FLOOR) ** alpha / weight.double().clamp(min=FLOOR) ** (1 - alpha)
    return torch.where(weight > 0, ratio.clamp(min=FLOOR), torch.ones_like(ratio))
