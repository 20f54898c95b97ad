"""PLANNED -> SOLVED: the methods of the recipe, in order, each on the program as the one before it left it.

before   param layers.0.norm1.weight : f32[16]
after    param layers.0.norm1.weight : f32[16] <- smoothquant: / s
A method says what to do; what claims to be exact is checked on the graph, and refused where it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from qpass.errors import InputError, RecipeError
from qpass.graph.program import Change, Program
from qpass.methods import Method, Solution
from qpass.recipe import Recipe
from qpass.sites import Analysis, analyse
from qpass.sites.edits import check_finite
from qpass.sites.verify import Applied, verified

BY = "calibrate"
"""In the log: the lines with one summary for each method."""


def check_data(recipe: Recipe, calibration: Iterable[Any] | None) -> None:
    """Raise InputError where a method of the recipe looks at data and there is none."""
    if calibration is None:
        for method in recipe.methods:
            if method.needs_data:
                raise InputError(f"the method {method.name} looks at data, and there is none", where="calibration",
                                 fix="pass calibration=[batch, ...] to qpass.compile, each batch what the model is "
                                     "called with, or --calibration FILE on the command line")  # fmt: skip


def calibrate(program: Program, recipe: Recipe, calibration: Iterable[Any] | None = None) -> Program:
    """Run the methods. Round to nearest needs none, and then nothing changes.

    Raises:
        InputError: a method needs data and there is none, or it cannot be used.
        RecipeError: a glob of a method that matches nothing.
        NumericsError: NaN or Inf in a parameter or, on the batches, in a value.
    """
    check_data(recipe, calibration)
    data = _Batches(calibration) if calibration is not None else None
    for method in recipe.methods:
        analysis = analyse(program)
        _check_finite(program, analysis)
        solution = method.solve(program, analysis, data)
        applied = verified(program, solution.edits, add_bias=solution.add_bias, by=method.name)
        log = (*applied.program.log, *solution.notes, _summary(method, analysis, solution, applied))
        program = replace(applied.program, params={**applied.program.params, **solution.params}, log=log)
        _check_reached(method, analysis, solution)
    return replace(program, stage="SOLVED")


class _Batches:
    """The user's batches from the first one on, each time; an iterator is held as a list."""

    def __init__(self, calibration: Iterable[Any]) -> None:
        self.batches = list(calibration) if isinstance(calibration, Iterator) else calibration

    def __call__(self) -> Iterable[Any]:
        return self.batches


def _check_finite(program: Program, analysis: Analysis) -> None:
    """Raise NumericsError, with its name, for a parameter that holds NaN or Inf, before a method trips over it."""
    for name in dict.fromkeys(axis.param for site in analysis.sites for axis in site.axes):
        param = program.params[name]
        if isinstance(param, Tensor):
            check_finite(name, param)


def _check_reached(method: Method, analysis: Analysis, solution: Solution) -> None:
    if not solution.edits and not solution.params and not solution.notes:
        lost = "".join(f"; no rule for {op} at %{name}" for name, op in list(analysis.unknown.items())[:3])
        what = f"found nothing to act on among {len(analysis.sites)} sites{lost}"
        raise RecipeError(f"the method {what}", where=f"method {method.name}",
                          fix="remove it from the recipe, or see what there is: print(qpass.sites(model, args))")


def _summary(method: Method, analysis: Analysis, solution: Solution, applied: Applied) -> Change:
    refused = f", {len(applied.refused)} refused" if applied.refused else ""
    changed = f", {len(solution.params)} parameters set" if solution.params else ""
    skipped = sum(note.what.startswith("skipped") for note in solution.notes)
    left = f", {skipped} skipped" if skipped else ""
    text = f"{len(applied.kept)} exact edits on {len(analysis.sites)} sites{left}{refused}{changed}"
    return Change(BY, method.name, text)


def method_lines(program: Program, recipe: Recipe) -> tuple[str, ...]:
    """For a plan: one line a method, then one for each thing it left out or was refused."""
    lines = [f"{change.where}: {change.what}" for change in program.log if change.by == BY]
    names = {method.name for method in recipe.methods}
    reasons = ("skipped", "refused")
    lines += [f"{change.by}: {change.where}: {change.what}" for change in program.log
              if change.by in names and change.what.startswith(reasons)]  # fmt: skip
    return tuple(lines)

