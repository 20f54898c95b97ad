"""From how the graph reads parameters to how parameters follow: equations where several reads meet, then axes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from qpass.sites.flow import Use, varies
from qpass.sites.site import Where
from qpass.sites.system import System, narrowed
from qpass.sites.walk import Walk


@dataclass(frozen=True)
class Part:
    """Labels over some dimensions of a parameter; see ``site.Axis`` for the fields."""

    use: Use
    role: str
    dims: tuple[int, ...]
    labels: Tensor
    where: Where


def parts(walk: Walk) -> list[Part]:
    """Every label that a parameter follows, by dimension; parameters read in several ways get their equations."""
    found: dict[str, list[list[Part]]] = defaultdict(list)
    for use in walk.uses:
        found[use.param].append(_spread(walk.system, use))
    for name, uses in found.items():
        _agree(walk.system, name, uses)
    return [part for uses in found.values() for use in _once(uses) for part in use]


def _once(uses: list[list[Part]]) -> list[list[Part]]:
    """Uses of different elements of a parameter; of those that agree on the same elements, one that says all reads."""
    kept: list[list[Part]] = []
    for use in sorted(uses, key=lambda use: all(part.role in ("affine", "table") for part in use)):
        same = next((other for other in kept if not _apart(use[0].use, other[0].use)), None)
        if same is None:
            kept.append(use)
        else:
            same[0].use.reads += tuple(read for read in use[0].use.reads if read not in same[0].use.reads)
    return kept


def _apart(a: Use, b: Use) -> bool:
    """Whether two uses read no element in common."""
    covers = [(_covers(a, d), _covers(b, d)) for d in range(len(a.sizes))]
    return any(x is not None and y is not None and not x & y for x, y in covers)


def _spread(system: System, use: Use) -> list[Part]:
    """One use's labels, from the shape of its view to dimensions of the parameter."""
    along = [varies(coord) for coord in use.coords]
    result = []
    for role, term in use.terms:
        moving = set(varies(term))
        dims = tuple(d for d, view in enumerate(along) if moving & set(view))
        views = sorted({v for d in dims for v in along[d]})
        for v in sorted(moving - set(views)):  # the view repeats the parameter there
            system.equal(term, term.narrow(v, 0, 1), f"{use.param} is read with one factor")
        at = tuple(slice(None) if v in views else 0 for v in range(term.dim()))
        labels, index = term[at], tuple(use.coords[d][at] for d in dims)
        whole = torch.zeros([use.sizes[d] for d in dims], dtype=torch.int64)
        if dims:
            whole[index] = labels
            system.equal(whole[index], labels, f"{use.param} is read twice at one place")
        else:
            whole = labels
        result.append(Part(use, role, dims, whole, _where(use, dims)))
    return result


def _where(use: Use, dims: tuple[int, ...]) -> Where:
    """The part of the other dimensions that a use covers, where that is not all."""
    found = []
    for d, coord in enumerate(use.coords):
        if d not in dims:
            seen = torch.unique(narrowed(coord))
            if int(seen[0]) >= 0 and len(seen) < use.sizes[d]:
                found.append((d, seen))
    return tuple(found)


def _covers(use: Use, dim: int) -> set[int] | None:
    """The indices of one dimension that a use reads; None for all."""
    seen = torch.unique(narrowed(use.coords[dim]))
    return None if int(seen[0]) < 0 or len(seen) == use.sizes[dim] else set(seen.tolist())


def _agree(system: System, name: str, uses: list[list[Part]]) -> None:
    """A parameter has one value, so all who read one of its elements must want the same factor."""
    for one, other in combinations(uses, 2):
        a, b = one[0].use, other[0].use
        if a.offset != b.offset:
            _drop(system, [*one, *other], f"{name} is read as it is and with an offset")
            continue
        if _apart(a, b):
            continue
        why = f"{name} is shared by %{a.node} and %{b.node}"
        if any(_covers(use, d) is not None for use in (a, b) for d in range(len(a.sizes))):
            _drop(system, [*one, *other], why)
        else:
            _match(system, one, other, why)


def _drop(system: System, uses: list[Part], why: str) -> None:
    for part in uses:
        system.zero(part.labels, why)


def _match(system: System, one: list[Part], other: list[Part], why: str) -> None:
    """Σ of one's labels = Σ of the other's at every element: the difference along each dimension is constant."""
    sums: dict[tuple[int, ...], list[tuple[float, Tensor]]] = defaultdict(list)
    for sign, group in ((1.0, one), (-1.0, other)):
        for part in group:
            sums[part.dims].append((sign, part.labels))
    keys = [dims for dims in sums if dims]
    separate = len({d for dims in keys for d in dims}) == sum(len(dims) for dims in keys)
    totals = {dims: system.combine(terms, why) for dims, terms in sums.items()}
    if not separate:
        for total in totals.values():
            system.zero(total, why)
        return
    firsts = []
    for total in totals.values():
        first = total.reshape(-1)[0]
        if total.dim():
            system.equal(total, first, why)
        firsts.append((1.0, first))
    if firsts:
        system.zero(system.combine(firsts, why), why)
