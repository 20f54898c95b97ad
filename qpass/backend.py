"""``torch.compile(model, backend="qpass", options={"recipe": "w8a8-int8"})``: the pipeline behind Dynamo.

The graph enters the same pipeline as ``qpass.compile``, in the same form. What differs:

* Weights are quantized when a graph is compiled, and kept: a weight that is changed or replaced later is an error at
  the next call, not a stale answer. ``torch._dynamo.reset()`` starts over. The float model stays in memory.
* Names of linears are those of the module that is compiled; without one, of the function's variables.
* When a graph break cuts the model, a line of the recipe that matches nothing in one of the pieces is logged, as it may
  match in another. In a model of one graph it is an error, unless ``options={"allow_unmatched": True}``.

Dynamo wraps what is raised here in ``BackendCompilerFailed``, whose ``inner_exception`` is the qpass error.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from qpass import pipeline
from qpass.capture.dynamo import FlatCall, from_dynamo, is_partial, outside
from qpass.errors import InputError, RecipeError
from qpass.formats import nearest
from qpass.graph.program import Program
from qpass.lowering import Target
from qpass.passes.calibrate import check_data
from qpass.passes.plan import unreached
from qpass.recipe import Recipe
from qpass.stages import check

_OPTIONS = ("recipe", "target", "allow_unmatched")
_log = logging.getLogger("qpass.backend")
_compiled: list[weakref.ref[CompiledGraph]] = []


def qpass_backend(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: Any = None
) -> CompiledGraph:
    """Compile one graph of Dynamo's. Registered by entry point as the backend ``qpass``.

    Args:
        options: ``recipe`` (required, as in ``qpass.compile``), ``target`` (``cpu``), and ``allow_unmatched`` (False).
        mode: as in ``qpass.compile``, for the target ``cuda``.

    Raises:
        RecipeError: an option or recipe that is not legal, or a line of the recipe that matches nothing.
        InputError: a gradient is asked for, the model is in training mode or on another device than the target's.
        CaptureError, UnsupportedError, NumericsError: as ``qpass.compile``.
    """
    recipe, target, lenient = _read(options, mode)
    start = time.perf_counter()
    program = check(from_dynamo(gm, example_inputs))
    seconds = time.perf_counter() - start
    _check_device(example_inputs, target)
    partial = lenient or is_partial(gm)
    with outside():
        if partial:
            recipe = _reached(program, recipe, target)
        trace = pipeline.run(program, recipe, target)
        trace.seconds = {"export": seconds, **trace.seconds}
        start = time.perf_counter()
        runner = target.build(trace["LOWERED"])
        trace.seconds["build"] = time.perf_counter() - start
    _log.info("%s", trace.plan)
    graph = CompiledGraph(runner, program.call, trace, example_inputs)
    _compiled.append(weakref.ref(graph))
    return graph


def traces() -> list[pipeline.Trace]:
    """Every stage and the plan of each graph that is compiled and still in use, oldest first.

    A recompile adds one; ``torch._dynamo.reset()`` removes all. ``print(traces()[-1].plan)`` shows the newest plan.
    """
    alive = [graph.trace for graph in (ref() for ref in _compiled) if graph is not None]
    _compiled[:] = [ref for ref in _compiled if ref() is not None]
    return alive


class CompiledGraph:
    """What Dynamo calls: its flat inputs in, its flat outputs out.

    Args:
        runner: module of the program's flat inputs and outputs.
        call: which of Dynamo's inputs are the program's, and what becomes of its outputs.
        example_inputs: Dynamo's flat inputs at compile time; the weights among them are remembered, weakly.
    """

    def __init__(
        self, runner: nn.Module, call: FlatCall, trace: pipeline.Trace, example_inputs: Sequence[Any]
    ) -> None:
        self.trace = trace
        self._runner, self._call = runner, call
        self._weights = [(position, name, weakref.ref(example_inputs[position]), _version(example_inputs[position]))
                         for position, name in call.params]  # fmt: skip

    def __call__(self, *flat: Any) -> list[Any]:
        """Run the graph.

        Raises:
            InputError: a weight was changed or replaced since the graph was compiled.
        """
        for position, name, known, version in self._weights:
            if known() is not flat[position] or _version(flat[position]) != version:
                raise InputError("a weight was changed after torch.compile quantized it", where=name,
                                 fix="call torch._dynamo.reset(), then the model again")
        results = iter(self._runner(*(flat[position] for position in self._call.inputs)))
        with torch.no_grad():
            for position in self._call.mutated:
                flat[position].copy_(next(results))
        return [next(results) if literal is None else literal[0] for literal in self._call.outputs]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _read(options: Mapping[str, Any] | None, mode: Any) -> tuple[Recipe, Target, bool]:
    given = dict(options or {})
    for name in given:
        if name not in _OPTIONS:
            fix = nearest(str(name), _OPTIONS) or f"use {', '.join(_OPTIONS)}"
            raise RecipeError(f"unknown option {name!r} of the backend qpass", fix=fix)
    if given.get("recipe") is None:
        raise RecipeError("the backend qpass needs a recipe", fix='pass options={"recipe": "w8a8-int8"}')
    target = pipeline.load_target(given.get("target", "cpu"), mode)
    recipe = Recipe.parse(given["recipe"])
    check_data(recipe, None)  # a graph of the backend is compiled at its first call: there is no data yet
    return recipe, target, bool(given.get("allow_unmatched", False))


def _check_device(example_inputs: Sequence[Any], target: Target) -> None:
    devices = {value.device.type for value in example_inputs if isinstance(value, Tensor) and value.dim()}
    if target.device != "any" and devices - {target.device}:
        raise InputError(f"tensors on {', '.join(sorted(devices))} for the target {target.name}",
                         fix=f"move the model and its inputs to {target.device}, or choose another target")


def _reached(program: Program, recipe: Recipe, target: Target) -> Recipe:
    """The recipe less the lines that this graph has no use for, each of which is logged."""
    stage = "RAISED" if recipe.attention else "NORMAL"
    idle = unreached(pipeline.run(program, recipe, target, until=stage)[stage], recipe)
    for line, why in idle.items():
        _log.warning("recipe %s: the line %r does nothing in this graph: %s", recipe, line.glob, why)
    attention = tuple(line for line in recipe.attention if line not in idle)
    return replace(recipe, lines=tuple(line for line in recipe.lines if line not in idle), attention=attention)
