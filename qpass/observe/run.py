"""Run a program over the user's batches and keep statistics of some of its values; nothing else is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from qpass.errors import InputError, NumericsError, QPassError
from qpass.graph.program import Program
from qpass.observe.ids import check_ids, tables
from qpass.observe.statistics import Stats

Progress = Callable[[int], None]
"""Called with the number of batches done."""


class Observer(Protocol):
    """What takes in a value, batch by batch: ``Stats``, ``SecondMoment``."""

    def update(self, value: Tensor, /) -> None:
        """Take in one batch. Raises InputError or NumericsError for a value that it cannot use."""
        ...


Seen = TypeVar("Seen", bound=Observer)


def observe(
    program: Program, batches: Iterable[Any], values: Iterable[str], *, progress: Progress | None = None
) -> dict[str, Stats]:
    """Statistics of the values named ``values`` over ``batches``; errors as in ``gather``."""
    return gather(program, batches, {name: Stats() for name in values}, progress=progress)


@torch.no_grad()
def gather(
    program: Program, batches: Iterable[Any], found: dict[str, Seen], *, progress: Progress | None = None
) -> dict[str, Seen]:
    """Let the observers in ``found`` see the values they are named after, over ``batches``; returns ``found``.

    A batch is what the user's model is called with: a dict of keywords, a tuple of arguments, or a tensor, which is the
    only argument. Batches are used one after another and not kept; padding counts as data. The run ends behind the
    last value that is asked for. Parameters that edits made are computed once and held until the end.

    Raises:
        InputError: no batch, or one that does not fit the model's call, with its number from 0; an unknown value.
        NumericsError: NaN or Inf in a value, with its name and the batch's number.
    """
    names = {node.meta.get("name") for node in program.graph.nodes if node.op != "output"}
    for name in found:
        if name not in names:
            raise InputError("the program has no such value", where=f"%{name}", fix="print the program")
    params: dict[str, Tensor] = {}
    for number, flat in enumerate(numbered(program, batches)):
        try:
            _one(program, flat, found, params)
        except QPassError as error:
            raise in_batch(error, number) from error
        if progress:
            progress(number + 1)
    return found


def in_batch(error: QPassError, number: int) -> QPassError:
    """The error of one batch, with its number from 0."""
    where = f"calibration batch {number}" + (f", {error.where}" if error.where else "")
    return type(error)(error.what, where=where, fix=error.fix)


def numbered(program: Program, batches: Iterable[Any]) -> Iterator[Sequence[Any]]:
    """The flat inputs of each batch. InputError, with its number from 0, for one that does not fit, and for none.

    Among what does not fit: a token id that the model's table has no row for.
    """
    number, looked_up = -1, tables(program)
    for number, batch in enumerate(batches):
        try:
            flat = flat_inputs(program, batch)
            check_ids(looked_up, flat)
        except QPassError as error:
            raise in_batch(error, number) from error
        yield flat
    if number < 0:
        raise no_batch()


def no_batch() -> InputError:
    """The error of a run over nothing."""
    return InputError("there is no calibration batch", fix="pass at least one; an iterator is used up by one pass")


def flat_inputs(program: Program, batch: Any) -> Sequence[Any]:
    """The flat inputs of one batch. Raises InputError for one that does not fit the model's call."""
    if isinstance(batch, Mapping):
        args, kwargs = (), dict(batch)
    else:
        args, kwargs = (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}
    if program.call is not None:
        flat: Sequence[Any] = program.call.flatten(args, kwargs)
        return flat
    expected = len(program.placeholders())
    if kwargs or len(args) != expected:
        raise InputError(f"the program takes {expected} flat inputs, got {len(args)}", fix="pass a tuple of tensors")
    return args


def _one(program: Program, inputs: Sequence[Any], found: Mapping[str, Observer], params: dict[str, Tensor]) -> None:
    for name, value in _values(program, inputs, set(found), params):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise InputError("the value is no tensor of floats", where=f"%{name}", fix="ask for another value")
        try:
            found[name].update(value)
        except (NumericsError, InputError) as error:
            raise type(error)(error.what, where=f"%{name}", fix=error.fix) from error


def _values(
    program: Program, inputs: Sequence[Any], names: set[str], params: dict[str, Tensor]
) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the values in ``names``, in graph order; free each value after its last use."""
    uses = Counter({node: len(node.users) for node in program.graph.nodes})
    values: dict[fx.Node, Any] = {}
    given, left = iter(inputs), len(names)
    for node in program.graph.nodes:
        if node.op == "output" or not left:
            return
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = _param(program, str(node.target), params)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            call: Any = node.target
            values[node] = call(*args, **kwargs)
        if node.meta["name"] in names:
            left -= 1
            yield node.meta["name"], values[node]
        uses.subtract(node.all_input_nodes)
        for source in node.all_input_nodes:
            if not uses[source]:
                del values[source]
        if not node.users:
            del values[node]


def _param(program: Program, name: str, params: dict[str, Tensor]) -> Tensor:
    if name not in params:
        params[name] = program.tensor(name)
    return params[name]
