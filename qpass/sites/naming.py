"""What a site is called: by what it re-scales, never by who wrote the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from qpass.sites.site import Axis, Site

NORM = "linear-norm"
SERIAL = "serial linear-linear"
PARALLEL = "parallel linear-linear"
GATED = "gated activation"
OTHER = "other"
KINDS = (NORM, SERIAL, PARALLEL, GATED, OTHER)


def describe(sites: Sequence[Site]) -> list[Site]:
    """The sites with their kind and a unique name."""
    named = [replace(site, kind=_kind(site), name=_name(site)) for site in sites]
    counts = Counter(site.name for site in named)
    seen: Counter[str] = Counter()
    result = []
    for site in named:
        seen[site.name] += 1
        unique = f"{site.name} ({seen[site.name]})" if counts[site.name] > 1 else site.name
        result.append(replace(site, name=unique))
    return result


def _kind(site: Site) -> str:
    if site.smooths:
        return GATED
    roles = {axis.role for axis in site.producers}
    if not site.columns:
        return PARALLEL if site.producers and site.consumers else OTHER
    if "row" in roles:
        return SERIAL
    return NORM if "affine" in roles else OTHER


def _name(site: Site) -> str:
    """``producer -> consumer, consumer``, biases left out."""
    made = [axis for axis in site.producers if not _is_bias(axis, site)]
    met = [axis for axis in site.consumers if not _is_bias(axis, site)] or [
        axis for axis in site.axes if axis.powers.sign == 0]
    return f"{_names(made)} -> {_names(met)}"


def _is_bias(axis: Axis, site: Site) -> bool:
    return axis.role == "affine" and any(other.bias == axis.param for other in site.axes)


def _names(axes: Sequence[Axis]) -> str:
    return ", ".join(dict.fromkeys(axis.param.removesuffix(".weight") + part(axis) for axis in axes)) or "-"


def part(axis: Axis) -> str:
    """Which channels of a parameter that holds more: ``[16:24]``; ``[16 of 48]`` where scattered; else none."""
    touched = (axis.powers.index >= 0).any(0)
    count, lines = int(touched.sum()), touched.flatten(1).any(1) if touched.dim() > 1 else touched
    if count == touched.numel() or touched.dim() != 1:
        return "" if count == touched.numel() else f"[{count} of {touched.numel()}]"
    first, last = int(lines.nonzero()[0]), int(lines.nonzero()[-1]) + 1
    return f"[{first}:{last}]" if last - first == count else f"[{count} of {touched.numel()}]"
