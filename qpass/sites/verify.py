"""Is an edit exact? Run the program before and after in wide numbers on small random inputs, and compare."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import NumericsError
from qpass.graph.program import Change, Derived, Program
from qpass.graph.values import op_name
from qpass.sites.edited import Edited
from qpass.sites.edits import Edit, Fold, apply, reason_against
from qpass.sites.inputs import random_inputs
from qpass.sites.site import State
from qpass.sites.widen import WideMeaning, retyped, widened

_TELLS, _DOUBLE = 1e-3, 1e-9


@dataclass(frozen=True, eq=False)
class Applied:
    """What became of a list of edits.

    Args:
        program: with the edits that were kept; its log has a line for each one refused.
        kept: in order.
        refused: (edit, why, the relative error it alone would make; inf where it could not be tried).
    """

    program: Program
    kept: tuple[Edit, ...]
    refused: tuple[tuple[Edit, str, float], ...]


def verified(
    program: Program, edits: Sequence[Edit], *, tolerance: float = 1e-5, add_bias: bool = False, by: str = "edit",
    seed: int = 0,
) -> Applied:  # fmt: skip
    """Apply the edits that leave every output where it was; refuse the others, each with its reason.

    The measure is ‖after - before‖ / ‖before‖ of each output, in float32; where it is above ``tolerance`` the edit has
    a second hearing in float64 with 1e-9, since a large factor alone can cost float32 its digits.

    Raises:
        InputError, NumericsError: as ``apply``. NumericsError also where the program itself gives no finite output.
    """
    refused: list[tuple[Edit, str, float]] = []
    possible: list[Edit] = []
    for edit in edits:
        reason = reason_against(program, edit, add_bias=add_bias)
        if reason is None:
            possible.append(edit)
        else:
            refused.append((edit, reason, float("inf")))
    after = apply(program, possible, add_bias=add_bias, by=by)  # the only time that parameters are read for NaN
    kept = _Judge(program, tolerance, add_bias, seed).sift(possible, [], refused) if possible else []
    if len(kept) < len(possible):
        after = apply(program, kept, add_bias=add_bias, by=by, read=False)
    lines = tuple(Change(by, edit.site.name, f"refused: {reason}") for edit, reason, _ in refused)
    return Applied(replace(after, log=after.log + lines), tuple(kept), tuple(refused))


class _Judge:
    """The outputs of the program as it was, and how far edits move them."""

    def __init__(self, program: Program, tolerance: float, add_bias: bool, seed: int) -> None:
        self.program, self.tolerance, self.add_bias = program, tolerance, add_bias
        self.inputs = self._inputs(seed)
        self.expected: dict[torch.dtype, list[Tensor]] = {}

    def _inputs(self, seed: int) -> list[Any]:
        """Small sizes; those of the capture where the graph does not take small ones."""
        try:
            inputs = random_inputs(self.program, seed=seed)
            self._check(run_in(self.program, torch.float32, *inputs))
        except NumericsError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError):
            inputs = random_inputs(self.program, seed=seed, captured_sizes=True)
            self._check(run_in(self.program, torch.float32, *inputs))
        return inputs

    def _check(self, outputs: Sequence[Any]) -> None:
        floats = [value for value in outputs if isinstance(value, Tensor) and value.is_floating_point()]
        if not any(bool(torch.isfinite(value).any()) for value in floats):
            raise NumericsError("no output is finite on random inputs, so that no edit can be checked",
                                fix="run the model on real inputs, and look for the first value with NaN or Inf")

    def sift(self, edits: list[Edit], kept: list[Edit], refused: list[tuple[Edit, str, float]]) -> list[Edit]:
        """The ``edits`` that may stay on top of ``kept``. A group that fails is halved until the guilty stand alone."""
        error, allowed = self.error([*kept, *edits], alone=len(edits) == 1)
        if error <= allowed:
            return edits
        if len(edits) == 1:
            reason = f"it moves an output by {error:.1e} of its size, {allowed:.0e} is allowed"
            refused.append((edits[0], reason, error))
            return []
        half = len(edits) // 2
        first = self.sift(edits[:half], kept, refused)
        return first + self.sift(edits[half:], [*kept, *first], refused)

    def error(self, edits: Sequence[Edit], *, alone: bool) -> tuple[float, float]:
        """The relative error of a list of edits, and what is allowed for it."""
        after = apply(self.program, edits, add_bias=self.add_bias, by="check", read=False)
        error = self._distance(after, edits, torch.float32)
        if error <= self.tolerance or (error > _TELLS and not alone):
            return error, self.tolerance
        return self._distance(after, edits, torch.float64), _DOUBLE

    def _distance(self, after: Program, edits: Sequence[Edit], dtype: torch.dtype) -> float:
        if dtype not in self.expected:
            self.expected[dtype] = _floats(run_in(self.program, dtype, *self.inputs))
        states = [(state, state.powers.factor(edit.scale.double()))
                  for edit in edits if isinstance(edit, Fold) for state in edit.site.states]  # fmt: skip
        outputs = _floats(run_in(after, dtype, *self.inputs, states=states))
        return max(map(relative_error, self.expected[dtype], outputs), default=0.0)


def _floats(outputs: Sequence[Any]) -> list[Tensor]:
    return [value.to(torch.float64) for value in outputs if isinstance(value, Tensor)]


def relative_error(before: Tensor, after: Tensor) -> float:
    """‖after - before‖ / ‖before‖, without entries that are the same infinity or both NaN; inf if others differ."""
    if before.shape != after.shape:
        return float("inf")
    same = (before == after) | (before.isnan() & after.isnan())
    if not bool((same | (before.isfinite() & after.isfinite())).all()):
        return float("inf")
    change = torch.where(same, 0.0, after - before).norm()
    size = torch.where(before.isfinite(), before, 0.0).norm()
    return float(change / size) if size > 0 else float(change)


# ---------------------------------------------------------------------------------------------------- wide numbers


@torch.no_grad()
def run_in(
    program: Program, dtype: torch.dtype, *inputs: Any, states: Sequence[tuple[State, Tensor]] = ()
) -> tuple[Any, ...]:
    """Interpret the graph with every floating-point value in ``dtype``, whatever it was captured in.

    Casts and factories make ``dtype`` too, and edited parameters are not rounded to their own dtype, so the result is
    that of exact arithmetic but for ``dtype`` itself. A parameter is read where it is used and freed after it.

    Args:
        dtype: float32 or float64.
        inputs: flat, as the program's placeholders.
        states: states that this program holds re-scaled, and their factors: the input is multiplied on its way in, and
            outputs made from it by one op divided on their way out.
    """
    uses = Counter({node: len(node.users) for node in program.graph.nodes})
    values: dict[fx.Node, Any] = {}
    scaled: _States = defaultdict(list)
    for state, factor in states:
        scaled[state.node].append((state, factor))
    given = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "output":
            outputs = fx.map_arg(node.args[0], lambda arg: _value(program, arg, values, dtype))
            return tuple(_unscaled(arg, value, scaled, dtype) for arg, value in zip(node.args[0], outputs))
        if node.op == "placeholder":
            values[node] = widened(_rescaled(node, next(given), scaled), dtype)
        elif node.op == "get_attr":
            continue  # captured graphs hold all of them in front; each is read by the op that needs it, for as long
        else:
            values[node] = _call(program, node, values, dtype)
        uses.subtract(node.all_input_nodes)
        for source in node.all_input_nodes:
            if not uses[source]:
                values.pop(source, None)
        if not node.users:
            del values[node]
    raise AssertionError("a graph without an output")


def read_in(program: Program, name: str, dtype: torch.dtype) -> Tensor:
    """A parameter in ``dtype`` if it is floating-point; one that edits made is not rounded on the way."""
    param = program.params[name]
    if not isinstance(param, Derived):
        return param.to(dtype) if param.is_floating_point() else param
    if not isinstance(param.fn, Edited):
        tensor = program.tensor(name)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    sources = [read_in(program, source, dtype) for source in param.sources]
    return param.fn.compute(sources, dtype)


def _value(program: Program, node: fx.Node, values: Mapping[fx.Node, Any], dtype: torch.dtype) -> Any:
    return read_in(program, str(node.target), dtype) if node.op == "get_attr" else values[node]


def _call(program: Program, node: fx.Node, values: Mapping[fx.Node, Any], dtype: torch.dtype) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: _value(program, arg, values, dtype))
    args, kwargs = retyped(args, dtype), retyped(kwargs, dtype)
    name = op_name(node.target)
    call: Callable[..., Any] = node.target  # type: ignore[assignment]
    if name.startswith("qpass."):
        # the meaning itself, as its casts are only seen while it runs in Python
        with WideMeaning(dtype):
            return widened(ops.REGISTRY[name.removeprefix("qpass.")].meaning(*args, **kwargs), dtype)
    return widened(call(*args, **kwargs), dtype)


_States = dict[str, list[tuple[State, Tensor]]]


def _rescaled(node: fx.Node, value: Any, scaled: _States) -> Any:
    found = scaled.get(node.meta["name"])
    return value.double() * _along(found, value) if found else value


def _unscaled(node: Any, value: Any, scaled: _States, dtype: torch.dtype) -> Any:
    """An output that one op made from a re-scaled state, as the unedited program would give it."""
    if not isinstance(node, fx.Node) or not isinstance(value, Tensor):
        return value
    for source in (node, *node.all_input_nodes):
        if source.op == "placeholder" and scaled.get(source.meta["name"]):
            return (value.double() / _along(scaled[source.meta["name"]], value)).to(dtype)
    return value


def _along(found: Sequence[tuple[State, Tensor]], value: Tensor) -> Tensor:
    """The product of all factors of a state, in the shape that broadcasts to ``value``."""
    product = torch.ones([1] * value.dim(), dtype=torch.float64, device=value.device)
    for state, factor in found:
        shape = [value.shape[dim] if dim in state.dims else 1 for dim in range(value.dim())]
        product = product * factor.to(value.device).reshape(shape)
    return product
