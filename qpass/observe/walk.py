"""Walk a PLANNED program linear by linear, each weight rounded before its outputs are computed.

So a weight sees its inputs as they will be at inference: outputs of weights that are rounded already, and in the format
that the plan gives its input. All batches stand at the same node when a weight's turn comes:

    for each input that planned linears read, in graph order:
        for each batch: run the nodes up to the first of those linears
        for each batch: take in the input              one second moment for all linears that read it in one format
        solve the weights that have seen all their inputs

Memory: of all batches, the values that later nodes still need where a weight is solved (in a transformer the residual
stream and one linear's input, or queries, keys and values); what comes and goes in between is there for one batch only.
Beside these, the moments of one input, [K, K], three with a float stream, which doubles the values and the time too;
and the rounded weights between their own turn and their last use. Nothing behind the last planned linear is computed,
nor what only the program's outputs need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import QPassError
from qpass.formats import Format
from qpass.graph.program import Program
from qpass.graph.values import ancestors
from qpass.numerics import codec
from qpass.numerics.hessian import Inputs
from qpass.observe.moments import StreamMoments
from qpass.observe.run import in_batch, numbered
from qpass.ops import attend

Key = tuple[fx.Node, Format | None]
"""A value, and the format it is read in."""


@dataclass(frozen=True)
class Layer:
    """A weight whose turn has come.

    Attributes:
        name: of the parameter.
        value: [N, K], the weight as it is now, in the model's dtype.
        format: the plan's, without a low-rank branch.
        inputs: second moments of what all its linears read.
        rows: how many rows were seen.
    """

    name: str
    value: Tensor
    format: Format
    inputs: Inputs
    rows: int


Solve = Callable[[Layer], Tensor]
"""Gives the values [N, K] that the weight has at inference, in its dtype."""


@torch.no_grad()
def walk(
    program: Program, batches: Iterable[Any], solve: Solve, *, quantize_inputs: bool = True, asymmetric: bool = False,
    dtype: torch.dtype = torch.float32, progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Call ``solve`` for each weight that the plan gives a format, in graph order.

    A weight of several linears is solved once it has seen the inputs of all of them; until then it computes as it is.
    A static scale of an input is that of the least and greatest value in the batches, unless the program has one.

    Args:
        program: PLANNED.
        batches: as ``observe`` takes them. All are held, as their flat inputs, until the walk has passed the last use.
        quantize_inputs: round inputs as the plan says; else only weights are.
        asymmetric: run the float model beside, for the moments of its inputs.
        dtype: of the moments.
        progress: called with the number of weights solved, and of all.

    Raises:
        InputError: no batch, or one that does not fit the model's call, with its number from 0.
        NumericsError: NaN or Inf in the input of a planned linear, with its name and the batch's number.
    """
    route = _Route(program, quantize_inputs)
    if not route.stops:
        return
    state = _State(program, route, list(numbered(program, batches)), dtype, asymmetric)
    done = 0
    for nodes, key in route.stops:
        state.advance(nodes)
        for name, moments in state.ready(key):
            state.solve(name, solve, moments)
            done += 1
            if progress:
                progress(done, len(route.format_of))


class _Route:
    """Which nodes run, between which stops, and when a value is needed no more.

    Attributes:
        linears: what reads a value in a format, among the planned linears; ``planned`` is the other way round.
        keys_of: weight -> in how many of ``linears`` it is.
        format_of: weight -> its format.
        attentions: those that the plan gives formats, if inputs are rounded.
        stops: in order, the nodes to pass before a stop, and what it is about.
        needed: the nodes to run; others are passed.
        frees: node -> what is needed no more once it is passed.
        last_stop: parameter -> the number of the stop before which it is used last.
    """

    def __init__(self, program: Program, quantize_inputs: bool) -> None:
        self.linears: dict[Key, list[fx.Node]] = {}
        self.keys_of: dict[str, int] = {}
        self.format_of: dict[str, Format] = {}
        self.planned: dict[fx.Node, Key] = {}
        for node in program.nodes():
            scheme = getattr(node.meta.get("plan"), "scheme", None)
            if scheme is not None:
                source = node.args[0]
                assert isinstance(source, fx.Node)
                key = (source, scheme.input if quantize_inputs else None)
                self.planned[node] = key
                self.linears.setdefault(key, []).append(node)
                self.format_of[_weight(node)] = scheme.weight.plain
        for key in self.linears:
            for name in {_weight(linear) for linear in self.linears[key]}:
                self.keys_of[name] = self.keys_of.get(name, 0) + 1
        schemes = {node: getattr(node.meta.get("attention"), "scheme", None) for node in program.nodes()}
        self.attentions = {node: scheme for node, scheme in schemes.items() if scheme and quantize_inputs}
        self._cut(list(program.graph.nodes))

    def _cut(self, nodes: list[fx.Node]) -> None:
        """Stops, each just before the first linear that reads its value, and the last use of every value."""
        first = {linears[0]: key for key, linears in self.linears.items()}
        self.needed = ancestors(*(key[0] for key in self.linears))
        self.stops: list[tuple[list[fx.Node], Key]] = []
        self.frees: dict[fx.Node, list[fx.Node]] = {}
        self.last_stop: dict[str, int] = {}
        last: dict[fx.Node, fx.Node] = {}
        segment: list[fx.Node] = []
        for node in nodes:
            if node in first:
                self.stops.append((segment, first[node]))
                segment = []
            if node.op != "call_function" or not (node in self.needed or node in first):
                continue
            segment.append(node)
            for source in node.all_input_nodes:
                last[source] = node
                if source.op == "get_attr":
                    self.last_stop[str(source.target)] = len(self.stops)
        for source, node in last.items():
            self.frees.setdefault(node, []).append(source)


def _weight(linear: fx.Node) -> str:
    weight = linear.args[1]
    assert isinstance(weight, fx.Node)
    return str(weight.target)


@dataclass
class _Stream:
    """The values of one batch that are still needed, and its inputs as the plan rounds them."""

    values: dict[fx.Node, Any]
    rounded: dict[Key, Tensor] = field(default_factory=dict)

    def free(self, nodes: Sequence[fx.Node]) -> None:
        """Let values go."""
        for node in nodes:
            self.values.pop(node, None)
            if self.rounded:
                self.rounded = {key: value for key, value in self.rounded.items() if key[0] is not node}


class _State:
    """Where all batches stand."""

    def __init__(
        self, program: Program, route: _Route, given: list[Sequence[Any]], dtype: torch.dtype, asymmetric: bool
    ) -> None:
        self.program, self.route, self.dtype, self.stop = program, route, dtype, 0
        self.streams = [self._start(flat) for flat in given]
        self.floats = [self._start(flat) for flat in given] if asymmetric else []
        self.pending = dict(route.keys_of)
        self.merged: dict[str, StreamMoments] = {}
        self.params: dict[str, Tensor] = {}
        self.solved: dict[str, Tensor] = {}
        self.static: dict[Key, tuple[Tensor, Tensor]] = {}

    def _start(self, flat: Sequence[Any]) -> _Stream:
        places = zip(self.program.placeholders(), flat)
        return _Stream({node: value for node, value in places if node in self.route.needed})

    def advance(self, nodes: list[fx.Node]) -> None:
        """Run ``nodes``, one batch after another."""
        for stream in self.streams:
            self._run(nodes, stream, rounding=True)
        for stream in self.floats:
            self._run(nodes, stream, rounding=False)
        for held in (self.params, self.solved):
            for name in [name for name in held if self.route.last_stop.get(name, -1) <= self.stop]:
                del held[name]
        self.stop += 1

    def _run(self, nodes: list[fx.Node], stream: _Stream, *, rounding: bool) -> None:
        def value(node: fx.Node) -> Any:
            return self.value(stream, node)

        for node in nodes:
            key = self.route.planned.get(node)
            call: Any = node.target
            if node in self.route.needed and rounding and key is not None:
                rest, kwargs = fx.map_arg((node.args[2:], node.kwargs), value)
                name = _weight(node)
                weight = self.solved[name] if name in self.solved else self.param(name)
                stream.values[node] = call(self._rounded(stream, key), weight, *rest, **kwargs)
            elif node in self.route.needed:
                args, kwargs = fx.map_arg((node.args, node.kwargs), value)
                scheme = self.route.attentions.get(node) if rounding else None
                stream.values[node] = attend(call, args, scheme) if scheme else call(*args, **kwargs)
            stream.free(self.route.frees.get(node, ()))

    def param(self, name: str) -> Tensor:
        """A parameter as it is in the float model; held until its last use."""
        if name not in self.params:
            self.params[name] = self.program.tensor(name)
        return self.params[name]

    def value(self, stream: _Stream, node: fx.Node) -> Any:
        """What a node stands for in one batch."""
        return self.param(str(node.target)) if node.op == "get_attr" else stream.values[node]

    def _rounded(self, stream: _Stream, key: Key) -> Tensor:
        """What a linear reads of a value."""
        value: Tensor = self.value(stream, key[0])
        fmt = key[1]
        if fmt is None:
            return value
        if key not in stream.rounded:
            if fmt.static:
                scale, zero = self.static[key]
                codes = codec.quantize_static(value, scale, zero, fmt)
            else:
                codes, scale, zero = codec.quantize_rows(value, fmt)
            stream.rounded[key] = codec.dequantize_rows(codes, scale, zero, fmt, value.dtype)
        return stream.rounded[key]

    def moments(self, key: Key) -> StreamMoments:
        """Of the value that a stop is about, over all batches."""
        found = StreamMoments(self.dtype, asymmetric=bool(self.floats))
        if key[1] is not None and key[1].static:
            self.static[key] = self._static(key, key[1])
        for number, stream in enumerate(self.streams):
            float_x = self.value(self.floats[number], key[0]) if self.floats else None
            try:
                found.update(self._rounded(stream, key), float_x)
            except QPassError as error:
                named = type(error)(error.what, where=f"%{key[0].meta['name']}", fix=error.fix)
                raise in_batch(named, number) from error
            stream.rounded.clear()  # computed again when the linear runs: one batch's at a time
        return found

    def _static(self, key: Key, fmt: Format) -> tuple[Tensor, Tensor]:
        """Scale and zero point, [1, 1] each."""
        parts = [f"{_weight(self.route.linears[key][0])}.{part}" for part in ("input_scale", "input_zero")]
        if all(part in self.program.params for part in parts):
            return self.program.tensor(parts[0]), self.program.tensor(parts[1])
        ends = [torch.aminmax(self.value(stream, key[0])) for stream in self.streams]
        low = torch.stack([end[0] for end in ends]).amin().float().reshape(1, 1)
        high = torch.stack([end[1] for end in ends]).amax().float().reshape(1, 1)
        return codec.row_scales(low, high, fmt)

    def ready(self, key: Key) -> Iterator[tuple[str, StreamMoments]]:
        """The weights that have seen all their inputs now, and the moments of these."""
        found = self.moments(key)
        for name in dict.fromkeys(_weight(linear) for linear in self.route.linears[key]):
            self.pending[name] -= 1
            if not self.pending[name] and name not in self.merged:
                yield name, found
                continue
            held = self.merged.setdefault(name, StreamMoments(self.dtype, asymmetric=bool(self.floats)))
            held.merge(found)
            if not self.pending[name]:
                yield name, self.merged.pop(name)

    def solve(self, name: str, solve: Solve, moments: StreamMoments) -> None:
        """Have a weight rounded; from here on its linears compute with what comes back."""
        value, fmt = self.param(name), self.route.format_of[name]
        self.solved[name] = solve(Layer(name, value, fmt, moments.inputs(), moments.count))
        if not self.floats:
            self.params.pop(name)
