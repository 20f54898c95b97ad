"""The walk: one pass over a program on tiny shapes, in which each op's rule says how factors pass through it.

Nothing is computed but sizes and integers that do not depend on data; a value is a ``Flow`` of labels, a parameter a
``Weight``. What has no rule keeps every factor out: its inputs and outputs are as they were, which is always sound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qpass.errors import UnsupportedError
from qpass.graph.program import Derived, Program
from qpass.graph.values import op_name
from qpass.sites.flow import ZERO, Dynamic, Flow, Shifts, Use, Weight, carries, weight
from qpass.sites.rule import RULES
from qpass.sites.system import NEUTRAL, System, broadcast, narrowed

_DENSE = 1 << 20  # parameters of up to so many elements have an unknown for each
_CONCRETE = 1 << 18  # integer constants of up to so many elements are kept as they are


class Walk:
    """The state of one walk. ``smooth``: x·h(x) may become x·h(x·r), which FSBR's gated sites need.

    Attributes:
        system: the equations found so far.
        uses: how each parameter is read.
        smooths: activation's value name -> labels [C] of its input.
        states: placeholder -> labels of its shape; what a later call gets back is scaled as what this one leaves.
        columns: (value name of the reader, labels of what it reads, why they are 0 if they are).
        aliases: a parameter's first name -> all its names.
        unknown: value name of an op without a rule -> its op and source line.
    """

    def __init__(self, program: Program, *, smooth: bool = False) -> None:
        self.program, self.smooth = program, smooth
        self.system, self.shifts = System(), Shifts()
        self.sizes = _tiny(program)
        self.uses: list[Use] = []
        self.smooths: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}
        self.columns: list[tuple[str, Tensor, str]] = []
        self.unknown: dict[str, str] = {}
        self._values: dict[fx.Node, Any] = {}
        self._dense: dict[tuple[str, float], Use] = {}
        self._same: dict[Any, str] = {}
        self.aliases: dict[str, list[str]] = defaultdict(list)

    def run(self) -> None:
        """Walk the graph."""
        states = dict(getattr(self.program.call, "states", ()))
        last = {}
        for node in self.program.graph.nodes:
            for source in node.all_input_nodes:
                last[source] = node
        inputs = {node: number for number, node in enumerate(self.program.placeholders())}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._input(node, inputs[node] in states)
            elif node.op == "get_attr":
                self._values[node] = self._param(node)
            elif node.op == "output":
                self._output(node, {out: self.program.placeholders()[at] for at, out in states.items()})
            else:
                self._values[node] = self._call(node)
            for source in node.all_input_nodes:
                if last[source] is node:
                    del self._values[source]

    # -------------------------------------------------------------------------------------------- inputs and outputs

    def _input(self, node: fx.Node, state: bool) -> Any:
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            return Dynamic(_size(value, self.sizes))
        meta = torch.empty([_size(size, self.sizes) for size in value.shape], dtype=value.dtype, device="meta")
        if not state:
            return self.flow(meta, why="it comes from an input")
        wide = [size if isinstance(size, int) else 1 for size in value.shape]
        labels = self.system.fresh(*wide).expand(meta.shape)
        self.states[node.meta["name"]] = labels
        return self.flow(meta, labels)

    def _param(self, node: fx.Node) -> Any:
        name, like = str(node.target), self.program.like(str(node.target))
        if not carries(like):
            small = like.numel() <= _CONCRETE and not isinstance(self.program.params[name], Derived)
            known = small and like.device.type == "cpu"
            return self.program.tensor(name) if known else torch.empty_like(like, device="meta")
        if name not in self.program.weights:
            return self.flow(torch.empty_like(like, device="meta"), why="it comes from a constant")
        if not like.numel():
            return self.flow(torch.empty_like(like, device="meta"), why="it is empty")
        if not like.dim():
            return self._scalar(self._one_name(name), like, node)
        return weight(self._one_name(name), like)

    def _scalar(self, name: str, like: Tensor, node: fx.Node) -> Flow:
        """A parameter of one number: one unknown, however often it is read."""
        if (name, 0.0) not in self._dense:
            ids = self.system.fresh(1)[0]
            self._dense[name, 0.0] = self.use(Use(name, (), (), 0.0, [("affine", ids)], node.meta["name"]))
        return Flow(torch.empty_like(like, device="meta"), self._dense[name, 0.0].terms[0][1])

    def _one_name(self, name: str) -> str:
        """A tensor that has two names is one parameter."""
        param = self.program.params[name]
        if isinstance(param, Derived) or not param.numel():
            return name
        key = (param.untyped_storage()._cdata, param.storage_offset(), param.shape, param.stride())
        first = self._same.setdefault(key, name)
        if name not in self.aliases[first]:
            self.aliases[first].append(name)
        return first

    def _output(self, node: fx.Node, states: dict[int, fx.Node]) -> None:
        results: Any = node.args[0]
        for position, arg in enumerate(results):
            value = self._values[arg]
            if not isinstance(value, Flow | Weight):
                continue
            if position in states:
                held = self.states[states[position].meta["name"]]
                one = tuple(slice(0, 1) if held.stride(d) == 0 else slice(None) for d in range(held.dim()))
                self.system.equal(self.labels(value, node), held[one], "a state, which the next call reads")
            else:
                self.system.zero(self.labels(value, node), "it is an output")

    # --------------------------------------------------------------------------------------------------------- calls

    def _call(self, node: fx.Node) -> Any:
        found = self._result(node)
        symbolic = isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)
        return Dynamic(found) if symbolic and isinstance(found, int | float) else found

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        values = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Flow | Weight)]
        if not values:
            return self._compute(node, args, kwargs)
        name = op_name(node.target)
        rule = RULES.get(name)
        if rule is None or not (rule.always or any(self.moves(value) for value in values)):
            return self.keep(node, values, args, kwargs, known=rule is not None)
        before = len(self.uses)
        try:
            return rule.apply(self, node, *args, **kwargs)
        except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
            for use in self.uses[before:]:  # what the rule had begun to say is taken back
                for _, term in use.terms:
                    self.system.zero(term, f"%{node.meta['name']} is called in a way that has no rule")
            return self.keep(node, values, args, kwargs, known=False)

    def moves(self, value: Flow | Weight) -> bool:
        """Whether a factor may sit on it."""
        return isinstance(value, Weight) or value.over is not None or bool((narrowed(value.labels) != 0).any())

    def _compute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """A call on integers and sizes: for real where all are known, else only its size."""
        leaves = pytree.tree_leaves((args, kwargs))
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):  # arithmetic on sizes
            return self._number(node, args, kwargs)
        known = not any((isinstance(leaf, Tensor) and leaf.is_meta) or isinstance(leaf, Dynamic) for leaf in leaves)
        if not known or not self._fixed(node):
            zero = self._fills_zero(node, args)
            return self._wrap(self.shape_of(node, args, kwargs), "it does not depend on a factor", zero=zero)
        call: Any = node.target
        return self._wrap(call(*args, **kwargs), "it is a constant")

    @staticmethod
    def _number(node: fx.Node, args: Any, kwargs: Any) -> Any:
        call: Any = node.target
        args, kwargs = pytree.tree_map(lambda leaf: int(leaf) if isinstance(leaf, Dynamic) else leaf, (args, kwargs))
        return call(*args, **kwargs)

    @staticmethod
    def _fills_zero(node: fx.Node, args: Any) -> bool:
        """Whether a new tensor is all zeros or infinities, of whatever size."""
        name = op_name(node.target)
        fill = args[1] if name == "full" and len(args) > 1 else None
        fixed = isinstance(fill, int | float) and not isinstance(fill, Dynamic)
        return name == "zeros" or (fixed and fill in (0, float("inf"), float("-inf")))

    @staticmethod
    def _fixed(node: fx.Node) -> bool:
        """Whether the result has the same size in every call, and is not too large to compute for nothing."""
        values = [leaf for leaf in pytree.tree_leaves(node.meta["val"]) if isinstance(leaf, Tensor)]
        return all(isinstance(n, int) for value in values for n in value.shape) and all(
            value.numel() <= _CONCRETE for value in values)  # fmt: skip

    def _wrap(self, found: Any, why: str, *, zero: bool = False) -> Any:
        """Float tensors become flows without a factor."""

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor) or not carries(value):
                return value
            labels = (torch.tensor(NEUTRAL) if zero else ZERO).expand(value.shape)
            if not value.is_meta:
                fixed = (value == 0) | value.isinf()
                if bool(fixed.any()):
                    everywhere = bool(fixed.all())
                    labels = (torch.tensor(NEUTRAL).expand(value.shape) if everywhere
                              else torch.where(fixed, NEUTRAL, 0))  # fmt: skip
            return Flow(value.to("meta"), labels, why)

        return pytree.tree_map(one, found)

    def keep(self, node: fx.Node, values: Sequence[Any], args: Any, kwargs: Any, *, known: bool) -> Any:
        """The op keeps every factor out."""
        moving = [value for value in values if self.moves(value)]
        if not known and moving:
            self.unknown[node.meta["name"]] = f"{op_name(node.target)}{_line(node)}"
        why = f"%{node.meta['name']} ({op_name(node.target)}) " + ("keeps every factor out" if known else "has no rule")
        for value in moving:
            self.zero(value, node, why)
        if not moving:
            why = next((value.why for value in values if value.why), why)
        return self._wrap(self.shape_of(node, args, kwargs), why)

    def shape_of(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The op's result as meta tensors."""
        args, kwargs = pytree.tree_map(_meta, (args, kwargs))
        kwargs = {key: "meta" if key == "device" else value for key, value in kwargs.items()}
        call: Any = node.target
        try:
            return call(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            value = node.meta["val"]
            if isinstance(value, Tensor):  # data decides its size: some small size stands for it
                sizes = [_size(size, self.sizes) for size in value.shape]
                return torch.empty(sizes, dtype=value.dtype, device="meta")
            raise _lost(node, error) from error

    # ---------------------------------------------------------------------------------------------- words for rules

    def flow(self, meta: Tensor, labels: Tensor | None = None, why: str = "", **more: Any) -> Any:
        """A ``Flow``; integers stay meta tensors."""
        if not carries(meta):
            return meta
        labels = ZERO.expand(meta.shape) if labels is None else labels
        return Flow(meta, labels if more.get("over") is not None else labels.expand(meta.shape), why, **more)

    def labels(self, value: Any, node: fx.Node) -> Tensor:
        """Labels of a value of any kind, of its shape; a parameter gets its unknowns on first sight."""
        if isinstance(value, Flow):
            return value.labels if value.over is None else self._ungrouped(value)
        if isinstance(value, Weight):
            return self._parameter(value, node)
        if isinstance(value, Tensor):
            return ZERO.expand(value.shape)
        number = float(value) if isinstance(value, int | float) and not isinstance(value, Dynamic) else 1.0
        fixed = number == 0 or number in (float("inf"), float("-inf"))
        return torch.tensor(NEUTRAL) if fixed else ZERO

    def _ungrouped(self, value: Flow) -> Tensor:
        self.system.equal(value.labels, value.labels[:1], "rows of several experts meet")
        return value.labels[0]

    def _parameter(self, value: Weight, node: fx.Node) -> Tensor:
        key = (value.name, value.offset)
        size = 1
        for length in value.sizes:
            size *= length
        if key not in self._dense:
            dense = size <= _DENSE
            ids = self.system.fresh(*(value.sizes if dense else value.sizes[-1:]))
            whole = weight(value.name, torch.empty(value.sizes, device="meta"))
            use = Use(value.name, value.sizes, whole.coords, value.offset, [("affine", ids.expand(value.sizes))],
                      node.meta["name"])  # fmt: skip
            self._dense[key] = self.use(use)
        ids = self._dense[key].terms[0][1]
        if not value.sizes:
            return ids.expand(value.shape)
        if any(bool((narrowed(coord) < 0).any()) for coord in value.coords):
            dims = [d for d, coord in enumerate(value.coords) if bool((narrowed(coord) < 0).any())]
            for dim in dims:  # which index it is depends on data: it must not matter
                first = ids.narrow(dim, 0, 1)
                self.system.equal(ids, first, "data picks the index")
        small = narrowed(*value.coords) if len(value.coords) > 1 else (narrowed(value.coords[0]),)
        return ids[tuple(coord.clamp(min=0) for coord in small)].expand(value.shape)

    def use_of(self, value: Weight) -> Use:
        """How a parameter that is read elementwise follows."""
        return self._dense[value.name, value.offset]

    def use(self, use: Use) -> Use:
        """Register how a parameter is read."""
        use.order = len(self.uses)
        self.uses.append(use)
        return use

    def zero(self, value: Any, node: fx.Node, why: str) -> None:
        """No factor on this value."""
        if isinstance(value, Flow | Weight):
            self.system.zero(self.labels(value, node), why)

    def merge(self, one: Tensor, two: Tensor, why: str) -> Tensor:
        """Two values that must have the same factor -> its labels; an exact zero takes the other's."""
        one, two = broadcast(one, two)
        self.system.equal(one, two, why)
        small, other = narrowed(one, two)
        return torch.where(small == NEUTRAL, other, small).expand(one.shape)

    def tie(self, labels: Tensor, dims: Iterable[int], why: str) -> Tensor:
        """The same factor all along ``dims``; returns the labels with one element there."""
        for dim in dims:
            if labels.dim() and labels.shape[dim] > 1:
                first = labels.narrow(dim, 0, 1)
                if labels.stride(dim) != 0:
                    self.system.equal(labels, first, why)
                    first = self._not_neutral(labels, dim)
                labels = first
        return labels

    @staticmethod
    def _not_neutral(labels: Tensor, dim: int) -> Tensor:
        """Of tied labels along a dimension, one that is not NEUTRAL where there is one."""
        return labels.max(dim, keepdim=True).values if bool((labels == NEUTRAL).any()) else labels.narrow(dim, 0, 1)

    def move(self, value: Any, node: fx.Node, run: Callable[[Tensor], Any]) -> Any:
        """Data movement: the same op on the labels, or on a parameter's coordinates."""
        if isinstance(value, Weight):
            return value.moved(run)
        metas = run(value.meta)
        labels = run(value.labels) if value.over is None else torch.vmap(run)(value.labels)
        if isinstance(metas, list | tuple):
            return [replace(value, meta=meta, labels=label, rows_sum=False) for meta, label in zip(metas, labels)]
        return replace(value, meta=metas, labels=labels, rows_sum=False)


def _meta(leaf: Any) -> Any:
    if isinstance(leaf, Flow):
        return leaf.meta
    if isinstance(leaf, Weight):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def _line(node: fx.Node) -> str:
    """Where in the user's source an op comes from."""
    lines = [line.strip() for line in node.meta.get("stack_trace", "").splitlines() if line.strip().startswith("File")]
    return f", {lines[-1]}" if lines else ""


def _lost(node: fx.Node, error: Exception) -> UnsupportedError:
    what = f"scale flow cannot follow {op_name(node.target)}: {str(error).splitlines()[0]}"
    return UnsupportedError(what, where=f"%{node.meta['name']}{_line(node)}",
                            fix="leave methods that re-scale out of the recipe")  # fmt: skip


def _tiny(program: Program) -> dict[Any, int]:
    """A small legal size for each symbol: at least 2, so that no size is taken for one that broadcasts."""
    ranges = getattr(program.call, "ranges", {})
    sizes: dict[Any, int] = {}
    for node in program.placeholders():
        value = node.meta["val"]
        for size in value.shape if isinstance(value, Tensor) else (value,):
            if not isinstance(size, int):
                for symbol in size.node.expr.free_symbols:
                    low = ranges.get(program.dims.get(str(symbol), ""), (2, None))[0]
                    sizes[symbol] = max(2, low)
    return sizes


def _size(size: Any, sizes: dict[Any, int]) -> int:
    """A size in numbers; symbols that only data knows are 2."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: sizes.get(symbol, 2) for symbol in expression.free_symbols}))
