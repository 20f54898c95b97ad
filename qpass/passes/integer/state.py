"""What one run of ``integerise`` has made so far, and the values that an op of the float program becomes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import NumericsError, UnsupportedError
from qpass.formats.integer import Integer
from qpass.graph.program import Derived, Param, Program
from qpass.graph.values import op_name
from qpass.numerics.integer.exp2 import TABLE


@dataclass(frozen=True)
class Row:
    """Values x · 2^-k. x: int32 [..., C]; k: int32 [..., 1]."""

    x: fx.Node
    k: fx.Node


@dataclass(frozen=True)
class Absent:
    """A float value without an integer form. ``culprit`` is the op that has none; a parameter stands for itself."""

    node: fx.Node
    culprit: fx.Node


Value = Row | Absent | fx.Node | tuple[Row, ...]


class State:
    """The new graph, its parameters, and what each node of the old graph is in it."""

    def __init__(self, program: Program, options: Integer) -> None:
        self.program, self.options = program, options
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Value] = {}
        self.params: dict[str, Param] = dict(program.params)
        self.history: dict[str, tuple[str, ...]] = dict(program.history)
        self.made: dict[str, fx.Node] = {}
        self.codes: dict[Any, tuple[fx.Node, ...]] = {}
        self.types: dict[Any, Tensor] = {}
        first = next(node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor))
        self.mode, self.device = first.fake_mode, first.device

    # ------------------------------------------------------------------------------------------- values of the old
    def row(self, node: Any, user: fx.Node) -> Row:
        """The rows that an argument is. Raises UnsupportedError, with the op that has no integer form."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if isinstance(value, Row):
            return value
        if isinstance(value, Absent):
            raise refused(f"{op_name(value.culprit.target)} has no integer form", value.culprit)
        raise refused(f"{op_name(user.target)} of {node} has no integer form", user)

    def plain(self, node: Any, user: fx.Node) -> fx.Node:
        """The integer or bool value that an argument is. Raises UnsupportedError."""
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if isinstance(value, fx.Node):
            return value
        culprit = value.culprit if isinstance(value, Absent) else user
        raise refused(f"{op_name(culprit.target)} has no integer form", culprit)

    def absent(self, node: fx.Node) -> Absent:
        """That ``node`` has no integer form, because of itself or of what it reads."""
        found = [value for arg in node.all_input_nodes if isinstance(value := self.values[arg], Absent)]
        computed = [value.culprit for value in found if value.culprit.op == "call_function"]
        return Absent(node, computed[0] if computed else node)

    def copy(self, node: fx.Node) -> fx.Node:
        """A node of integers, as it is."""
        made = self.graph.node_copy(node, lambda arg: self.plain(arg, node))
        made.meta = dict(node.meta)
        return made

    # -------------------------------------------------------------------------------------------- nodes of the new
    def type(self, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """A fake tensor; one for all values of a type, since each costs milliseconds on symbolic shapes."""
        key = (tuple(str(size) for size in shape), dtype)
        if key not in self.types:
            with self.mode:
                self.types[key] = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        return self.types[key]

    def call(self, target: Any, *args: Any, like: fx.Node, val: Any, name: str | None = None) -> fx.Node:
        """A call with the scopes and the source line of ``like``."""
        made = self.graph.call_function(target, args)
        made.meta.update(scopes=like.meta.get("scopes", ()), rule="integerise", val=val)
        if "stack_trace" in like.meta:
            made.meta["stack_trace"] = like.meta["stack_trace"]
        if name:
            made.meta["name"] = name
        return made

    def several(
        self, target: Any, *args: Any, like: fx.Node, types: Sequence[Tensor], names: Sequence[str]
    ) -> tuple[fx.Node, ...]:
        """The results of an op that gives several, by name; the op itself is ``<first name>.whole``."""
        whole = self.call(target, *args, like=like, val=tuple(types), name=f"{names[0]}.whole")
        return tuple(self.call(operator.getitem, whole, number, like=like, val=val, name=name)
                     for number, (val, name) in enumerate(zip(types, names)))  # fmt: skip

    def rows(self, target: Any, *args: Any, like: fx.Node, shape: Sequence[Any] | None = None,
             k_shape: Sequence[Any] | None = None) -> Row:  # fmt: skip
        """The rows that an op gives in place of ``like``, of its shape and with one exponent a row."""
        shape = tuple(like.meta["val"].shape) if shape is None else shape
        types = self.type(shape, torch.int32), self.type(k_shape or (*shape[:-1], 1), torch.int32)
        name = like.meta["name"]
        return Row(*self.several(target, *args, like=like, types=types, names=(name, f"{name}.exponent")))

    # ------------------------------------------------------------------------------------------------- parameters
    def param(self, name: str, param: Param | None = None, what: str = "") -> fx.Node:
        """A node that reads a parameter; ``param`` is stored under that name first, ``what`` in its history."""
        if param is not None and name not in self.params:
            self.params[name] = param
            self.history[name] = (*self.history.get(name.rpartition(".")[0], ()), what)
        if name not in self.made:
            found = self.params[name]
            like = found.like if isinstance(found, Derived) else found
            node = self.graph.create_node("get_attr", name)
            node.meta.update(name=name, val=self.type(like.shape, like.dtype))
            self.made[name] = node
        return self.made[name]

    def derive(self, base: str, parts: Sequence[tuple[str, Sequence[int], torch.dtype]], sources: Sequence[str],
               compute: Callable[..., Sequence[Tensor]], what: str) -> tuple[fx.Node, ...]:  # fmt: skip
        """Parameters ``base.<part>`` of those shapes and dtypes, computed from ``sources`` when they are asked for."""
        found = []
        for number, (part, shape, dtype) in enumerate(parts):
            like = torch.empty(tuple(shape), dtype=dtype, device="meta")
            derived = Derived(tuple(sources), _Part(compute, number, ", ".join(sources)), like)
            found.append(self.param(f"{base}.{part}", derived, what))
        return tuple(found)

    def table(self) -> fx.Node:
        """The table of 2^-z."""
        return self.param("integer.exp2", torch.tensor(TABLE, dtype=torch.int32, device=self.device), "table")

    def quantized(self, node: fx.Node, row: Row, bits: int, symmetric: bool) -> tuple[fx.Node, ...]:
        """Codes, zero, m, k of rows; linears that read one value in one format share them."""
        key = (node, bits, symmetric)
        if key not in self.codes:
            shape, name = tuple(node.meta["val"].shape), node.meta["name"]
            one = self.type((*shape[:-1], 1), torch.int32)
            end = "" if not any(other[0] is node for other in self.codes) else f".{len(self.codes)}"
            self.codes[key] = self.several(
                ops.integer_quantize, row.x, row.k, bits, symmetric, *self._scales(), like=node,
                types=(self.type(shape, torch.int8), one, one, one),
                names=[f"{name}.{part}{end}" for part in ("codes", "zero", "scale", "scale_exponent")],
            )  # fmt: skip
        return self.codes[key]

    def _scales(self) -> tuple[Any, ...]:
        """What ``integer_quantize`` is told beside the format: nothing where all is as its defaults are."""
        found = (self.options.mantissa, self.options.mode)
        return () if found == (15, "precise") else found


@dataclass(frozen=True)
class _Part:
    """One of the results of a function."""

    compute: Callable[..., Sequence[Tensor]]
    number: int
    where: str

    def __call__(self, *sources: Tensor) -> Tensor:
        try:
            return self.compute(*sources)[self.number]
        except NumericsError as error:  # which knows the numbers, and not whose they are
            raise NumericsError(error.what, where=error.where or self.where, fix=error.fix) from error


def refused(what: str, node: fx.Node, fix: str = "") -> UnsupportedError:
    """The error for an op that cannot be computed in integers, with its value's name and the user's line."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    where = f"%{node.meta.get('name', node.name)}" + (f", {lines[-1]}" if lines else "")
    return UnsupportedError(what, where=where, fix=fix or "use a recipe that is not integer-only for this model")


def name_of(arg: Any, user: fx.Node) -> str:
    """The name of the parameter that an argument is."""
    if not isinstance(arg, fx.Node) or arg.op != "get_attr":
        raise refused(f"{op_name(user.target)} with a weight that is computed has no integer form", user)
    return str(arg.target)
