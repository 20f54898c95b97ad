"""Read this first: the stages of qpass, in order, and nothing else.

    nn.Module ─capture─▶ CAPTURED ─normalise─▶ NORMAL ─raise─▶ RAISED ─plan─▶ PLANNED ─▶ SOLVED
    SOLVED ─quantise─▶ QUANTISED ─fuse─▶ FUSED ─lower(target)─▶ LOWERED ─build─▶ runnable nn.Module
    SOLVED ─integerise─▶ INTEGER ─lower(target)─▶ LOWERED                        with an integer-only recipe
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qpass.capture.export import export_model
from qpass.capture.interface import rebuild
from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.errors import InputError
from qpass.formats.integer import Integer
from qpass.graph.dump import dump_stage
from qpass.graph.integer_only import verify_integer_only
from qpass.graph.program import Program
from qpass.lowering import Target
from qpass.passes.cache_codes import cache_codes
from qpass.passes.calibrate import calibrate, check_data, method_lines
from qpass.passes.fuse import fuse
from qpass.passes.integerise import integerise
from qpass.passes.lower import lower
from qpass.passes.merge import merge
from qpass.passes.plan import Plan, plan_program, summarise
from qpass.passes.providers import provided
from qpass.passes.quantise import quantise
from qpass.passes.raise_ops import raise_ops
from qpass.ranges import integer_ranges, table_context
from qpass.recipe import Recipe
from qpass.sites import Analysis, analyse
from qpass.stages import STAGES, check

RecipeLike = Recipe | str | Path | Mapping[str, Any]
TARGETS = {
    "cpu": "qpass.lowering.cpu.target", "cuda": "qpass.lowering.cuda.target", "reference": "qpass.lowering.reference",
    "rocm": "qpass.lowering.cuda.rocm",
}  # fmt: skip

Pass = tuple[str, Callable[[Program], Program]]


def passes(recipe: Recipe, target: Target, calibration: Iterable[Any] | None = None) -> list[Pass]:
    """The pipeline: what turns a CAPTURED program into a LOWERED one, by the stage each pass reaches."""
    begin: list[Pass] = [
        ("NORMAL", normalise),
        ("RAISED", raise_ops),
        ("PLANNED", partial(plan_program, recipe=recipe, target=target)),
        ("SOLVED", partial(calibrate, recipe=recipe, calibration=calibration)),
    ]
    if recipe.integer is not None:
        return [*begin, ("INTEGER", partial(_integer, recipe.integer)), ("LOWERED", partial(_lower, target))]
    lowered = partial(lower, providers=target.providers, joins=target.joins)
    return [*begin, ("QUANTISED", quantise), ("FUSED", _fuse), ("LOWERED", lowered)]


def _fuse(program: Program) -> Program:
    """``fuse``, caches of codes where attention reads codes, and linears that read the same values as one where their
    kernels are better for it."""
    return merge(check(cache_codes(check(fuse(program)))))


def _integer(options: Integer, program: Program) -> Program:
    """``integerise``, and a proof that nothing in the result wraps within its context, which the recipe or a table of
    the model sets."""
    made = check(integerise(program, options))
    if options.context is None and made.call is not None:
        most = table_context(made, options.positions)
        if 0 < most < options.positions:
            made = check(integerise(program, replace(options, context=most)))
    integer_ranges(made)
    return made


def _tokens(options: Integer | None, program: Program) -> str:
    """A line of the plan."""
    most = getattr(program.call, "context", 0)
    assert options is not None
    why = "as the recipe says" if options.context else "the default"
    if most < options.positions:
        why = f"as many positions as the model's table has; the default is {options.positions}"
    return f"context: 1 to {most} tokens, past and new ({why})"


def _lower(target: Target, program: Program) -> Program:
    """``lower``, of a program that is and stays integer-only."""
    return verify_integer_only(lower(program, target.providers, target.regions, target.joins))


@dataclass
class Trace:
    """Every stage of one run: programs by stage, seconds by step, and the plan.

    Attributes:
        stages: stage name -> program, in order.
        seconds: step (``export``, each stage, ``build``) -> wall seconds.
        plan: what the recipe did to each linear.
    """

    stages: dict[str, Program] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    plan: Plan | None = None

    def __getitem__(self, stage: str) -> Program:
        if stage not in self.stages:
            raise InputError(f"there is no stage {stage!r} of this recipe", fix=f"use one of {', '.join(self.stages)}")
        return self.stages[stage]


def capture(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, dynamic_shapes: Any = None
) -> Program:
    """The CAPTURED program of a model. Arguments as in ``compile``."""
    captured = export_model(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    return from_export(captured.exported, prefix=captured.prefix, dims=captured.dims, call=captured.call)


def run(
    program: Program, recipe: Recipe, target: Target, *, until: str = "LOWERED", progress: Any = None,
    calibration: Iterable[Any] | None = None,
) -> Trace:  # fmt: skip
    """Run the passes on a CAPTURED program up to stage ``until``; every graph is checked against its stage."""
    recipe = recipe.given(calibration is not None)
    trace = Trace({"CAPTURED": program})
    dump(trace)
    if until == "CAPTURED":
        return trace
    for stage, step in passes(recipe, target, calibration):
        start = time.perf_counter()
        program = check(step(program))
        trace.stages[stage], trace.seconds[stage] = program, time.perf_counter() - start
        dump(trace)
        if stage == "PLANNED":
            trace.plan = summarise(program, recipe, target)
        if stage == "SOLVED" and recipe.methods and trace.plan is not None:
            solved = summarise(program, recipe, target)
            saved = solved.bytes_after - solved.bytes_before
            trace.plan = replace(trace.plan, choices=solved.choices, methods=method_lines(program, recipe),
                                 bytes_after=trace.plan.bytes_before + saved, merges=solved.merges)  # fmt: skip
        if stage == "INTEGER" and trace.plan is not None:
            trace.plan = replace(trace.plan, ops=(_tokens(recipe.integer, program), *provided(program, target)))
        if progress:
            progress(stage)
        if stage == until:
            break
    return trace


def dump(trace: Trace) -> None:
    """With ``QPASS_DUMP=folder`` in the environment, write the last stage there and what changed since the one before.

    Written stage by stage, so that a run that fails leaves what it got to.
    """
    folder = os.environ.get("QPASS_DUMP")
    if folder:
        programs = list(trace.stages.values())
        dump_stage(Path(folder), len(programs) - 1, programs[-1], programs[-2] if len(programs) > 1 else None)


def trace(
    model: nn.Module, recipe: RecipeLike, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
    target: str = "cpu", dynamic_shapes: Any = None, calibration: Iterable[Any] | None = None, until: str = "LOWERED",
    progress: Any = None,
) -> Trace:  # fmt: skip
    """Every stage of compiling ``model``, to print and to compare. Arguments as in ``compile``."""
    parsed, found = Recipe.parse(recipe), load_target(target)
    if STAGES.index(until) >= STAGES.index("SOLVED"):
        check_data(parsed, calibration)
    start = time.perf_counter()
    program = check(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    seconds = {"export": time.perf_counter() - start}
    if progress:
        progress("CAPTURED")
    result = run(program, parsed, found, until=until, progress=progress, calibration=calibration)
    result.seconds = {**seconds, **result.seconds}
    return result


def plan(
    model: nn.Module, recipe: RecipeLike, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
    target: str = "cpu", dynamic_shapes: Any = None, calibration: Iterable[Any] | None = None,
) -> Plan:  # fmt: skip
    """What ``compile`` would do: per linear its format and kernel, or why not; memory before and after.

    Nothing is quantized, packed or compiled. With ``calibration`` the methods of the recipe run too, and the plan says
    what they did. Arguments and errors as in ``compile``.
    """
    parsed = Recipe.parse(recipe)
    until = plan_stage(parsed, calibration)
    options = {"target": target, "dynamic_shapes": dynamic_shapes, "calibration": calibration, "until": until}
    result = trace(model, parsed, args, kwargs, **options).plan
    assert result is not None
    return result


def plan_stage(recipe: Recipe, calibration: Iterable[Any] | None) -> str:
    """The stage that a plan is made at: INTEGER for a recipe without floats, as that is where its ops are known."""
    if recipe.integer is not None and (calibration is not None or not recipe.methods):
        return "INTEGER"
    return "PLANNED" if calibration is None else "SOLVED"


def sites(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, smooth: bool = False,
    dynamic_shapes: Any = None,
) -> Analysis:  # fmt: skip
    """Every exact per-channel re-scaling of ``model``, found from its dataflow. ``print`` it for a table.

    Nothing is changed or computed; the walk is on tiny shapes whatever the examples are.

    Args:
        args, kwargs, dynamic_shapes: as in ``compile``.
        smooth: also those that need a vector at run time: x·h(x) as x·h(x/s), the gated activation of FSBR.

    Raises:
        InputError, CaptureError, UnsupportedError: see ``qpass.errors``.
    """
    program = check(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    return analyse(check(raise_ops(check(normalise(program)))), smooth=smooth)


def compile(
    model: nn.Module, recipe: RecipeLike, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
    target: str = "cpu", dynamic_shapes: Any = None, calibration: Iterable[Any] | None = None, progress: Any = None,
    mode: str | None = None,
) -> nn.Module:  # fmt: skip
    """A quantized copy of ``model`` that is called as the model is; the model itself is not changed.

    With ``QPASS_DUMP=folder`` in the environment, every stage and what it changed are written there as text.

    Args:
        model: in eval mode. A Hugging Face causal LM keeps ``generate()``; an encoder keeps its outputs.
        recipe: a scheme's name such as ``w8a8-int8``, a file, a dict, or a ``Recipe``.
        args, kwargs: example inputs; not needed for Hugging Face language models and encoders.
        target: ``cpu``, ``cuda`` (or ``cuda:sm_80`` for a GPU that is not here), ``rocm``, or ``reference`` (any
            device, the oracle).
        dynamic_shapes: as torch.export takes it.
        calibration: batches for the methods of the recipe that look at data: each is what the model is called with, a
            dict of keywords, a tuple of arguments, or a tensor of token ids. An iterator that several methods need is
            held as a list.
        progress: called with the name of each stage reached.
        mode: of ``torch.compile``, for ``cuda``: ``reduce-overhead`` and ``max-autotune`` record CUDA graphs of steps
            of up to 64 rows, which pays where sizes come back.

    Returns:
        A module with the user's interface. ``.qpass_plan`` has the plan, ``.qpass_seconds`` the time of each step.

    Raises:
        InputError, RecipeError, CaptureError, UnsupportedError, NumericsError: see ``qpass.errors``. The model is left
        as it was.
    """
    load_target(target, mode).check()
    result = trace(
        model, recipe, args, kwargs, target=target, dynamic_shapes=dynamic_shapes, calibration=calibration,
        progress=progress,
    )  # fmt: skip
    return build(model, result, target=target, progress=progress, mode=mode)


def build(
    model: nn.Module, result: Trace, *, target: str = "cpu", progress: Any = None, mode: str | None = None
) -> nn.Module:
    """The runnable module of a trace that has reached LOWERED; ``compile`` is ``trace``, then this."""
    lowered = result["LOWERED"]
    start = time.perf_counter()
    runner = load_target(target, mode).build(lowered)
    result.seconds["build"] = time.perf_counter() - start
    if progress:
        progress("built")
    compiled = rebuild(model, lowered.call, runner)
    compiled.qpass_plan, compiled.qpass_seconds = result.plan, result.seconds  # type: ignore[assignment]
    return compiled


def load_target(name: str, mode: str | None = None) -> Target:
    """The target of that name. The only place that turns a name into a module of ``qpass.lowering``."""
    base, colon, option = name.partition(":") if isinstance(name, str) else ("", "", "")
    if base not in TARGETS or (colon and not option):
        raise InputError(f"unknown target {name!r}", fix=f"use one of {', '.join(TARGETS)}")
    module = importlib.import_module(TARGETS[base])
    if hasattr(module, "configured"):
        found = module.configured(option, mode)
    elif option:
        raise InputError(f"target {base} takes no {option!r}", fix=f'use target="{base}"')
    elif mode not in (None, "default"):
        raise InputError(f"target {base} has no mode {mode!r}", fix="leave mode out; modes are for cuda")
    else:
        found = module.target
    assert isinstance(found, Target)
    return found
