"""Independent of the solver and of the edits: dense algebra, and a program run in float64 with parameters scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qpass import pipeline
from qpass.capture.normalise import normalise
from qpass.graph.program import Program
from qpass.sites import Analysis, Axis, Site
from qpass.sites.system import NEUTRAL, Array, System

Params = dict[str, Tensor]


def program_of(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """The NORMAL program of a model: every cast in it is in sight."""
    return normalise(pipeline.capture(model, args, kwargs))


def loud(model: nn.Module, seed: int = 0, size: float = 0.6) -> nn.Module:
    """Weights large enough that every part of the model matters to its output; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator)
            param.copy_(noise * size if param.dim() > 1 else param + 0.3 * noise)
    return model.eval()


def params_of(program: Program) -> Params:
    """All parameters; floats in float64."""
    found = {name: program.tensor(name) for name in program.used_params()}
    return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def scaled(params: Params, sites: Sequence[tuple[Site, Tensor]], skip: Axis | None = None) -> Params:
    """Parameters after each site's factors, written out elementwise; ``skip`` is left as it was."""
    new = dict(params)
    for site, factors in sites:
        for axis in site.axes:
            if axis is not skip:
                new[axis.param] = _follow(new[axis.param], axis, factors)
    return new


def _follow(value: Tensor, axis: Axis, factors: Tensor) -> Tensor:
    factor = torch.ones(axis.powers.index.shape[1:], dtype=torch.float64)
    for index, power in zip(axis.powers.index, axis.powers.power):
        factor = factor * torch.where(index < 0, 1.0, factors[index.clamp(min=0)] ** power)
    full = factor.reshape([size if d in axis.dims else 1 for d, size in enumerate(value.shape)]).expand(value.shape)
    mask = torch.ones(value.shape, dtype=torch.bool)
    for dim, indices in axis.where:
        inside = torch.zeros(value.shape[dim], dtype=torch.bool)
        inside[indices] = True
        mask &= inside.reshape([-1 if d == dim else 1 for d in range(value.dim())])
    return torch.where(mask, (value + axis.offset) * full - axis.offset, value)


def outputs(program: Program, inputs: Sequence[Any], params: Params) -> list[Tensor]:
    """What the user gets: the outputs that are no state."""
    states = {out for _, out in getattr(program.call, "states", ())}
    wide = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs]
    with torch.no_grad():
        found = _Wide(program, params).run(*wide)
    return [value for number, value in enumerate(found) if number not in states]


class _Wide(fx.Interpreter):
    """Runs a graph with float64 wherever it says float32."""

    def __init__(self, program: Program, params: Params) -> None:
        super().__init__(nn.Module(), graph=program.graph)
        self.params = params

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.params[target]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(lambda leaf: torch.float64 if leaf is torch.float32 else leaf, (args, kwargs))
        return super().call_function(target, args, kwargs)


def distance(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Largest relative error (Frobenius) over the outputs."""
    return max(float((b - a).norm() / a.norm().clamp(min=1e-30)) for a, b in zip(one, two, strict=True))


def random_factors(site: Site, generator: torch.Generator) -> Tensor:
    return torch.rand(site.size, generator=generator, dtype=torch.float64) * 2 + 0.2


def check_exact(program: Program, analysis: Analysis, inputs: Sequence[Any], bound: float = 1e-9) -> None:
    """A random choice of every factor at once, and of each site alone, leaves the float64 outputs as they were."""
    params = params_of(program)
    generator = torch.Generator().manual_seed(0)
    before = outputs(program, inputs, params)
    chosen = [(site, random_factors(site, generator)) for site in analysis.sites]
    for some in [chosen, *([pair] for pair in chosen)]:
        error = distance(before, outputs(program, inputs, scaled(params, some)))
        assert error < bound, f"{[site.name for site, _ in some]}: {error}"


def undetected(program: Program, analysis: Analysis, inputs: Sequence[Any]) -> list[str]:
    """Parts of a site that can be left out without a change of the outputs: there should be none.

    A bias of keys is no such part: the same number on every score of a row is nothing to a softmax.
    """
    params = params_of(program)
    generator = torch.Generator().manual_seed(1)
    before = outputs(program, inputs, params)
    quiet = []
    for site in analysis.sites:
        factors = random_factors(site, generator)
        for axis in site.axes:
            error = distance(before, outputs(program, inputs, scaled(params, [(site, factors)], skip=axis)))
            if error < 1e-6:
                quiet.append(f"{site.name}: {axis.param} {axis.role}")
    return quiet


class Dense:
    """Every equation of a walk, written down as it comes; the null space by a dense decomposition."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ties: list[tuple[Array, Array]] = []
        self.rows: list[tuple[Array, Array]] = []
        self.systems: list[System] = []
        union, row, solve = System._union, System.row, System.solve

        def recorded_union(system: System, a: Array, b: Array, why: str, because: Any = ()) -> None:
            if not self.systems:
                a, b = np.broadcast_arrays(a, b)
                self.ties.append((a.copy(), b.copy()))
            union(system, a, b, why, because)

        def recorded_row(system: System, labels: Array, weights: Array, why: str, pivot: int = 0) -> None:
            self.rows.append((labels.copy(), weights.copy()))
            row(system, labels, weights, why, pivot)

        def recorded_solve(system: System) -> Any:
            self.systems.append(system)
            return solve(system)

        monkeypatch.setattr(System, "_union", recorded_union)
        monkeypatch.setattr(System, "row", recorded_row)
        monkeypatch.setattr(System, "solve", recorded_solve)

    def matrix(self, count: int) -> Array:
        lines = []
        for a, b in self.ties:
            keep = (a != NEUTRAL) & (b != NEUTRAL)
            for x, y in zip(a[keep].tolist(), b[keep].tolist()):
                lines.append(_line(count, [(1, x), (-1, y)]))
        for labels, weights in self.rows:
            lines += [_line(count, [(w, x) for w, x in zip(weights.tolist(), terms) if x != NEUTRAL])
                      for terms in labels.tolist()]  # fmt: skip
        return np.array(lines) if lines else np.zeros((0, count - 1))


def _line(count: int, terms: list[tuple[float, int]]) -> Array:
    line = np.zeros(count)
    for weight, label in terms:
        line[abs(label)] += weight * (1 if label > 0 else -1)
    return line[1:]  # unknown 0 is the number 0


def basis(solution: Any, count: int) -> Array:
    """The solver's null space as columns over the unknowns."""
    found = np.zeros((count, solution.size))
    for term in range(solution.index.shape[1]):
        live = solution.index[:count, term] >= 0
        np.add.at(found, (np.flatnonzero(live), solution.index[:count, term][live]), solution.power[:count, term][live])
    return found[1:]
