"""Scale flow: all exact per-channel re-scalings of a program, from its dataflow alone.

The walk gives each element of each activation an unknown log-scale and each op its equations; the null space of the
equations is the set of all re-scalings; its independent parts, grouped by what they touch, are the sites.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qpass.errors import InputError
from qpass.graph.program import Program
from qpass.sites import rules  # noqa: F401  registers them
from qpass.sites.analysis import Analysis
from qpass.sites.axes import Part, parts
from qpass.sites.naming import describe
from qpass.sites.site import Axis, Powers, Site, Smooth, State
from qpass.sites.system import Solution, narrowed
from qpass.sites.walk import Walk


def analyse(program: Program, *, smooth: bool = False) -> Analysis:
    """Every exact re-scaling of a program of stage NORMAL to SOLVED. The program is not changed.

    Args:
        smooth: activations x·h(x) may become x·h(x/s), which adds the gated-activation sites of FSBR.

    Raises:
        InputError: something else than a program.
        UnsupportedError: an op whose sizes cannot be followed, with its source line.
    """
    if not isinstance(program, Program):
        raise InputError(f"a program is needed, not a {type(program).__name__}", where="qpass.sites.analyse",
                         fix="call qpass.sites(model, args) with a module")  # fmt: skip
    walk = Walk(program, smooth=smooth)
    walk.run()
    pieces = parts(walk)
    solution = walk.system.solve()
    gathered = _Gathered(walk, pieces, solution)
    sites = gathered.sites()
    return Analysis(tuple(sites), _refused(walk, solution), dict(walk.unknown))


class _Gathered:
    """Everything that follows a re-scaling, resolved to the free factors, and which factors belong together."""

    def __init__(self, walk: Walk, pieces: list[Part], solution: Solution) -> None:
        self.walk, self.solution = walk, solution
        self.items: list[tuple[object, tuple[int, ...], Tensor, Tensor]] = []
        for piece in sorted(pieces, key=lambda piece: piece.use.order):
            self._add(piece, piece.dims, piece.labels)
        for name, labels in walk.smooths.items():
            self._add(Smooth(name, _NONE), (0,), -labels)
        for name, labels in walk.states.items():
            dims = tuple(d for d in range(labels.dim()) if labels.stride(d) != 0 or labels.shape[d] == 1)
            at = tuple(slice(None) if d in dims else 0 for d in range(labels.dim()))
            self._add(State(name, dims, _NONE), dims, labels[at])
        self.group = self._groups()
        self.local = np.full(solution.size, -1, np.int64)
        self._shifts()

    def _add(self, what: object, dims: tuple[int, ...], labels: Tensor) -> None:
        index, power = self.solution.resolve(labels)
        if bool((index >= 0).any()):
            self.items.append((what, dims, index, power))

    def _groups(self) -> np.ndarray:
        """A number for each free factor; factors that touch the same things in the same way share one."""
        marks = np.zeros(self.solution.size, np.uint64)
        random = np.random.default_rng(0)
        for _, _, index, power in self.items:
            tag = random.integers(1, 2**63, dtype=np.uint64)
            pairs = np.stack((index.reshape(-1).numpy(), np.rint(power.reshape(-1).numpy() * 720).astype(np.int64)), 1)
            pairs = np.unique(pairs[pairs[:, 0] >= 0], axis=0)
            with np.errstate(over="ignore"):
                np.add.at(marks, pairs[:, 0], tag * (pairs[:, 1] * 2 + 1).astype(np.uint64))
        seen: dict[int, int] = {}
        return np.array([seen.setdefault(int(mark), len(seen)) for mark in marks], np.int64)

    def sites(self) -> list[Site]:
        """The sites, in graph order."""
        members: dict[int, list[int]] = defaultdict(list)
        for number, (_, _, index, _) in enumerate(self.items):
            touched = np.unique(index.numpy())
            for group in np.unique(self.group[touched[touched >= 0]]).tolist():
                members[group].append(number)
        untouched = set(range(int(self.group.max()) + 1 if len(self.group) else 0)) - set(members)
        assert not untouched, "a free factor that no parameter follows"
        made = [self._site(group, numbers) for group, numbers in members.items()]
        order = {id(site): min(numbers) for site, numbers in zip(made, members.values())}
        return describe(sorted(made, key=lambda site: order[id(site)]))

    def _site(self, group: int, numbers: list[int]) -> Site:
        size = self._number(group, numbers)
        axes, smooths, states = [], [], []
        for number in numbers:
            what, dims, index, power = self.items[number]
            powers = self._own(group, index, power)
            if isinstance(what, Part):
                names = self.walk.aliases.get(what.use.param, [what.use.param])
                axes += [_axis(what, name, dims, half) for half in _halves(powers) for name in names]
            elif isinstance(what, Smooth):
                smooths.append(replace(what, powers=powers))
            elif isinstance(what, State):
                states.append(replace(what, powers=powers))
        site = _turned(Site("", "", size, tuple(axes), tuple(smooths), tuple(states)))
        refused = self.unshiftable.get(group)
        return replace(site, unshiftable=refused, missing_bias=() if refused else tuple(self.biasless[group]))

    def _number(self, group: int, numbers: list[int]) -> int:
        """Factors are numbered by channel of the first weight column that they touch, else of the first thing."""
        columns = [n for n in numbers if isinstance(self.items[n][0], Part) and self.items[n][0].role == "column"]  # type: ignore[attr-defined]
        count = 0
        for number in (columns or numbers)[:1] + numbers:
            flat = self.items[number][2].reshape(-1).numpy()
            flat = flat[(flat >= 0)]
            flat = flat[(self.group[flat] == group) & (self.local[flat] < 0)]
            unique, first = np.unique(flat, return_index=True)
            unique = unique[np.argsort(first)]
            self.local[unique] = np.arange(count, count + len(unique))
            count += len(unique)
        return count

    def _own(self, group: int, index: Tensor, power: Tensor) -> Powers:
        """The part of an index that belongs to one site, by the site's own numbers; terms that are empty go."""
        which = index.numpy()
        mine = torch.from_numpy(np.where((which >= 0) & (self.group[which] == group), self.local[which], -1))
        live = (mine >= 0).reshape(len(mine), -1).any(1)
        return Powers(mine[live], torch.where(mine >= 0, power, 0.0)[live])

    def _shifts(self) -> None:
        """By group: why no shift may move there, and which ops would need a bias for it."""
        self.unshiftable: dict[int, str] = {}
        self.biasless: dict[int, dict[str, None]] = defaultdict(dict)
        for labels, why in self.walk.shifts.refused:
            for group in self._touched(labels):
                self.unshiftable.setdefault(group, why)
        for labels, node in self.walk.shifts.biasless:
            for group in self._touched(labels):
                self.biasless[group][node] = None

    def _touched(self, labels: Tensor) -> list[int]:
        """The groups whose factors some labels hold."""
        flat = np.abs(labels.numpy())
        index = self.solution.index[np.where(flat >= 2**61, 0, flat)]
        found: list[int] = np.unique(self.group[index[index >= 0]]).tolist()
        return found


_NONE = Powers(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.float64))


def _halves(powers: Powers) -> list[Powers]:
    """What is divided and what is multiplied in one parameter (the rows of a fused q, k, v), as two."""
    if powers.sign:
        return [powers]
    keep = [powers.power < 0, powers.power > 0]
    return [Powers(torch.where(side, powers.index, -1), torch.where(side, powers.power, 0.0)) for side in keep]


def _axis(part: Part, name: str, dims: tuple[int, ...], powers: Powers) -> Axis:
    use = part.use
    return Axis(name, dims, powers, part.role, use.node, part.where, use.offset,
                use.reads if part.role == "column" else (), use.bias if part.role != "column" else None)  # fmt: skip


def _turned(site: Site) -> Site:
    """Point s so that consumers multiply: the first weight column, else gate rows, else what comes last."""
    lead = next((axis.powers for axis in site.axes if axis.role == "column"), None)
    sign = lead.sign if lead else 0
    if site.smooths:
        sign = -site.smooths[0].powers.sign
    elif not lead and site.axes:
        sign = -site.axes[0].powers.sign
    if sign >= 0:
        return site

    def turn(powers: Powers) -> Powers:
        return Powers(powers.index, -powers.power)

    return replace(site, axes=tuple(replace(axis, powers=turn(axis.powers)) for axis in site.axes),
                   smooths=tuple(replace(item, powers=turn(item.powers)) for item in site.smooths),
                   states=tuple(replace(item, powers=turn(item.powers)) for item in site.states))  # fmt: skip


def _refused(walk: Walk, solution: Solution) -> dict[str, str]:
    """Readers of activations that no site re-scales, and why."""
    found: dict[str, str] = {}
    for node, labels, why in walk.columns:
        index, _ = solution.resolve(labels)
        if bool((index >= 0).any()):
            continue
        small = narrowed(labels).reshape(-1)
        first = next((int(label) for label in small[:1].tolist() if abs(label) < 2**61), 0)
        found[node] = (walk.system.why(first) if first else why) or "no weight before it makes a factor"
    return found
