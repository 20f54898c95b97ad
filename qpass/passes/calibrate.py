"""PLANNED -> SOLVED: the methods of the recipe, in order, each on the program as the one before it left it.

before   param layers.0.norm1.weight : f32[16]
after    param layers.0.norm1.weight : f32[16] <- smoothquant: / s
A method says what to do; what claims to be exact is checked on the graph, and refused where it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from qpass.errors import InputError, RecipeError
from qpass.graph.program import Change, Program, copy_graph
from qpass.learn.learner import Learner
from qpass.methods import Method, Solution
from qpass.methods.method import Data
from qpass.methods.together import Together
from qpass.numerics.codec import row_scales
from qpass.numerics.low_rank import DOWN, UP
from qpass.observe.run import numbered, observe
from qpass.passes.integer.norm_inputs import with_norm_inputs
from qpass.recipe import Recipe
from qpass.sites import Analysis, analyse
from qpass.sites.edits import check_finite
from qpass.sites.verify import Applied, verified

PARTS = ("codes", "scale", "zero", "outer")
_MOST = 4096  # batches of an iterator
BY = "calibrate"
"""In the log: the lines with one summary for each method."""


def check_data(recipe: Recipe, calibration: Iterable[Any] | None, *, static: bool = False) -> None:
    """Raise InputError where a method of the recipe, or a static format, looks at data and there is none."""
    who = _readers(recipe, static=static) if calibration is None else []
    if who:
        raise InputError(f"{who[0]} at data, and there is none", where="calibration",
                         fix="pass calibration=[batch, ...] to qpass.compile, each batch what the model is "
                             "called with, or --calibration FILE on the command line")  # fmt: skip


def _readers(recipe: Recipe, *, static: bool) -> list[str]:
    """Who looks at the batches."""
    who = [f"the method {method.name} looks" for method in recipe.methods if method.needs_data]
    static = static or any(line.scheme and line.scheme.input and line.scheme.input.static for line in recipe.lines)
    who += ["a static input format looks"] if static else []
    if recipe.integer is not None and recipe.integer.static:
        who.append(f"the integer mode {recipe.integer.mode} looks")
    return who


def calibrate(program: Program, recipe: Recipe, calibration: Iterable[Any] | None = None) -> Program:
    """Run the methods. Round to nearest needs none, and then nothing changes.

    Raises:
        InputError: a method needs data and there is none, or it cannot be used: for batches that are held, an id
            beyond the vocabulary or a wrong call in any of them is found before the first method runs.
        RecipeError: a glob of a method that matches nothing.
        NumericsError: NaN or Inf in a parameter or, on the batches, in a value.
    """
    static = any(_static(program))
    check_data(recipe, calibration, static=static)
    data = _Batches(calibration) if calibration is not None else None
    if data is not None and _readers(recipe, static=static):
        data.check(program)
    corrected: dict[str, str] = {}
    for method in _joined(recipe):
        analysis = analyse(program)
        _check_finite(program, analysis)
        solution = method.solve(program, analysis, data)
        applied = verified(program, solution.edits, add_bias=solution.add_bias, by=method.name)
        log = (*applied.program.log, *solution.notes, _summary(method, analysis, solution, applied))
        _check_fresh(method, program, applied.program)
        _check_scales(method, program, solution)
        _check_corrected(method, program, applied.program, solution, corrected)
        corrected |= dict.fromkeys(_corrects(program, solution), method.name)
        program = _with_params(applied.program, method, solution, log)
        program = _with_schemes(program, method, solution)
        _check_reached(method, analysis, solution)
    if data is not None and recipe.integer is not None and recipe.integer.static:
        program = with_norm_inputs(program, data())
    return replace(_with_static(program, data), stage="SOLVED")


def _joined(recipe: Recipe) -> list[Method]:
    """The methods, those that learn from blocks and stand side by side as one."""
    found: list[Method] = []
    for method in recipe.methods:
        if not isinstance(method, Learner):
            found.append(method)
        elif found and isinstance(found[-1], Together):
            found[-1] = replace(found[-1], methods=(*found[-1].methods, method))
        else:
            found.append(Together((method,), recipe.learning))
    return found


class _Batches:
    """The user's batches from the first one on, each time; an iterator is held as a list."""

    def __init__(self, calibration: Iterable[Any]) -> None:
        self.batches = calibration
        if isinstance(calibration, Iterator):
            self.batches = list(itertools.islice(calibration, _MOST))
            if next(calibration, None) is not None:
                what = f"the iterator gives more than {_MOST} batches, perhaps without end"
                fix = "pass a list, or itertools.islice(iterator, 128)"
                raise InputError(what, where="calibration", fix=fix)

    def __call__(self) -> Iterable[Any]:
        return self.batches

    def check(self, program: Program) -> None:
        """Raise InputError for a batch that does not fit. One that is made on demand is checked when it is."""
        if isinstance(self.batches, Sequence):
            for _ in numbered(program, self.batches):
                pass


def _check_finite(program: Program, analysis: Analysis) -> None:
    """Raise NumericsError, with its name, for a parameter that holds NaN or Inf, before a method trips over it."""
    for name in dict.fromkeys(axis.param for site in analysis.sites for axis in site.axes):
        param = program.params[name]
        if isinstance(param, Tensor):
            check_finite(name, param)


def _check_fresh(method: Method, before: Program, after: Program) -> None:
    """Raise RecipeError where a method edits a weight whose scales or codes an earlier one has chosen."""
    for name, param in before.params.items():
        for part in ("codes", "scale"):
            if f"{name}.{part}" in before.params and after.params.get(name, param) is not param:
                what = f"it re-scales {name}, whose {part} are chosen already"
                raise RecipeError(what, where=f"method {method.name}", fix="put it before the one that chooses them")


def _corrects(program: Program, solution: Solution) -> Iterator[str]:
    """The weights whose error a solution corrects, by a branch, or finds better uncorrected."""
    for name in solution.params:
        if name.endswith(f".{UP}"):
            yield name.removesuffix(f".{UP}")
    for node in program.nodes():
        choice = node.meta.get("plan")
        if choice is not None and choice.branch and choice.weight in solution.schemes:
            yield choice.weight


def _check_corrected(
    method: Method, before: Program, after: Program, solution: Solution, corrected: Mapping[str, str]
) -> None:
    """Raise RecipeError where a method changes what the error was that an earlier one has corrected."""
    for name, by in corrected.items():
        parts = [part for part in (*PARTS, UP, DOWN) if f"{name}.{part}" in solution.params]
        edited = after.params.get(name) is not before.params.get(name) or name in solution.params
        if parts or edited:
            what = f"it sets the {parts[0]} of {name}" if parts else f"it changes {name}"
            raise RecipeError(f"{what}, whose error {by} has corrected already", where=f"method {method.name}",
                              fix=f"put {method.name} before {by}" if by != method.name else "name it once")


def _check_scales(method: Method, before: Program, solution: Solution) -> None:
    """Raise RecipeError where a method sets a scale behind the codes that were rounded with another.

    Each value of the group would change by the ratio of the two: up to 2 for a scale that became a power of two.
    """
    for name in solution.params:
        weight, _, part = name.rpartition(".")
        codes = f"{weight}.codes"
        if part in ("scale", "zero", "outer") and codes in before.params and codes not in solution.params:
            what = f"it sets the {part} of {weight}, whose codes are chosen already"
            raise RecipeError(what, where=f"method {method.name}", fix="put it before the one that chooses the codes")


def _with_params(program: Program, method: Method, solution: Solution, log: tuple[Change, ...]) -> Program:
    """The program with the parameters that a method sets; one that was there before has it in its history."""
    history = {name: (*program.history.get(name, ()), f"{method.name}: set") for name in solution.params
               if name in program.params}  # fmt: skip
    params = {**program.params, **solution.params}
    return replace(program, params=params, history={**program.history, **history}, log=log)


def _with_schemes(program: Program, method: Method, solution: Solution) -> Program:
    """The program with other schemes for the linears of some weights. What a linear reads its input in stays."""
    schemes = solution.schemes
    if not schemes:
        return program
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        choice = node.meta.get("plan")
        if choice is None or choice.scheme is None or choice.weight not in schemes:
            continue
        scheme = schemes[choice.weight]
        if scheme is None:
            why = solution.reasons.get(choice.weight, f"{method.name} keeps it in float")
            node.meta["plan"] = replace(choice, scheme=None, kernel=None, branch=(), reason=why)
        else:
            scheme = replace(choice.scheme, weight=scheme.weight)
            node.meta["plan"] = replace(choice, scheme=scheme, branch=choice.branch if scheme.weight.rank else ())
    return program.with_graph(graph)


def _static(program: Program) -> Iterator[fx.Node]:
    """The linears whose input has a static scale."""
    for node in program.nodes():
        scheme = getattr(node.meta.get("plan"), "scheme", None)
        if scheme and scheme.input and scheme.input.static:
            yield node


def _with_static(program: Program, data: Data | None) -> Program:
    """The program with ``<weight>.input_scale`` and ``.input_zero``, from the least and greatest value seen."""
    linears = list(_static(program))
    if not linears:
        return program
    assert data is not None
    stats = observe(program, data(), [_input_name(node) for node in linears])
    params = dict(program.params)
    for node in linears:
        seen, choice = stats[_input_name(node)], node.meta["plan"]
        assert seen.low is not None and seen.high is not None
        ends = seen.low.amin().reshape(1, 1), seen.high.amax().reshape(1, 1)
        scale, zero = row_scales(*ends, choice.scheme.input)
        params |= {f"{choice.weight}.input_scale": scale, f"{choice.weight}.input_zero": zero}
    return replace(program, params=params)


def _input_name(node: fx.Node) -> str:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return str(source.meta["name"])


def _check_reached(method: Method, analysis: Analysis, solution: Solution) -> None:
    if not solution.edits and not solution.params and not solution.schemes and not solution.notes:
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
    return Change(BY, method.name, solution.summary or text)


def method_lines(program: Program, recipe: Recipe) -> tuple[str, ...]:
    """For a plan: one line a method, then its totals, and one for each thing it left out or was refused."""
    lines = [f"{change.where}: {change.what}" for change in program.log if change.by == BY]
    names = {method.name for method in (*recipe.methods, *_joined(recipe))}
    reasons = ("skipped", "refused", "dropped", "in all", "rolled back", "loss", "the first")
    lines += [f"{change.by}: {change.where}: {change.what}" for change in program.log
              if change.by in names and change.what.startswith(reasons)]  # fmt: skip
    return tuple(lines)

