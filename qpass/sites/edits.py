"""Edits: what a method asks for, and the one place that carries it out.

    Fold     x' = x / s      producers are divided by s, consumers multiplied
    Shift    x' = x - δ      producers' biases lose δ, consumers' biases gain W δ

Both leave the function of the program as it was. Several edits of one parameter are one computation in float64, rounded
once; nothing is computed before somebody asks for the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.errors import InputError, NumericsError, UnsupportedError
from qpass.graph.program import Change, Derived, Param, Program, copy_graph
from qpass.graph.values import assign_names
from qpass.ops.activation import GATES
from qpass.sites.biases import Biases
from qpass.sites.edited import Add, AddProduct, Edited, Scale, Step, edited, scale_of
from qpass.sites.site import Axis, Powers, Site, Smooth


@dataclass(frozen=True, eq=False)
class Fold:
    """Re-scale ``site`` by ``scale``: float [site.size], positive and finite. x' = x / s."""

    site: Site
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Shift:
    """Move ``shift`` out of the activation of ``site``: float [site.size], finite. x' = x - δ."""

    site: Site
    shift: Tensor


Edit = Fold | Shift


def apply(
    program: Program, edits: Iterable[Edit], *, add_bias: bool = False, by: str = "edit", read: bool = True
) -> Program:
    """The program after ``edits``, in order; each is exact by itself. ``program`` is not changed.

    A shift comes before a fold of the same site, as in LET: x' = (x - δ) / s. A state (key/value cache) of a site
    needs no change of the graph: from now on the cache holds re-scaled values, so one that was filled before does not
    fit any more.

    Args:
        program: RAISED or PLANNED.
        add_bias: let a shift add a bias to an op that has none.
        by: the method's name, for the parameters' history and the log.
        read: look for NaN and Inf, which reads each parameter once.

    Raises:
        InputError: a scale that is not positive and finite, a wrong length, a parameter that is not there.
        UnsupportedError: a shift that the site forbids, that needs a bias that is missing or that several ops share; a
            smoothed activation without that form; a parameter whose codes are chosen already.
        NumericsError: NaN or Inf in a parameter that would be edited, with its name, count and first index.
    """
    work = _Work(program, add_bias=add_bias, by=by, read=read)
    for edit in edits:
        work.edit(edit)
    return work.program()


def reason_against(program: Program, edit: Edit, *, add_bias: bool = False) -> str | None:
    """Why ``apply`` would not carry out ``edit``, or None; parameters are not read. Raises InputError as ``apply``."""
    try:
        _Work(program, add_bias=add_bias, by="", read=False).edit(edit)
    except UnsupportedError as error:
        return str(error)
    return None


class _Work:
    """Edits under way: a graph that is copied before its first change, and steps by parameter."""

    def __init__(self, program: Program, *, add_bias: bool, by: str, read: bool = True) -> None:
        self.before, self.add_bias, self.by, self.read = program, add_bias, by, read
        self.graph, self.copied = program.graph, False
        self.params: dict[str, Param] = dict(program.params)
        self.steps: dict[str, list[Step]] = {}
        self.sources: dict[str, list[str]] = {}
        self.history = dict(program.history)
        self.weights = program.weights
        self.log = list(program.log)

    # ------------------------------------------------------------------------------------------------ the edits

    def edit(self, edit: Edit) -> None:
        """Carry out one edit."""
        if isinstance(edit, Fold):
            self._fold(edit.site, _checked(edit.site, edit.scale, "scale", positive=True))
        else:
            self._shift(edit.site, _checked(edit.site, edit.shift, "shift", positive=False))

    def _fold(self, site: Site, scale: Tensor) -> None:
        axes = (*site.axes, *self._new_bias_axes(site))
        for axis in axes:
            like = self._like(axis.param)
            step = scale_of(axis, scale, like.shape)
            self._add(axis.param, step, _mark(axis.powers))
        for smooth in site.smooths:
            self._smooth(smooth, scale)
        self.log.append(Change(self.by, site.name, f"{len(axes) + len(site.smooths)} parameters re-scaled"))

    def _new_bias_axes(self, site: Site) -> list[Axis]:
        """Biases that an earlier shift added to producers of the site, which therefore does not know them."""
        known = {axis.param for axis in site.axes}
        biases = Biases(self.graph)
        found = []
        for axis in site.axes:
            bias = biases.of(axis) if axis.role in ("row", "affine") and not biases.adds(axis) else None
            if bias is not None and bias not in known and len(axis.dims) == 1:
                where = tuple((0, indices) for dim, indices in axis.where if dim == axis.dims[0])
                found.append(replace(axis, param=bias, dims=(0,), where=where, offset=0.0, role="affine", bias=None))
        return found

    def _smooth(self, smooth: Smooth, scale: Tensor) -> None:
        factor = smooth.powers.factor(scale)
        if bool((factor == 1).all()):  # the op without a factor is the same, and faster
            return
        node = self._node(smooth.node)
        if node.target not in (ops.activation, ops.gated):
            raise UnsupportedError("only an activation can be smoothed", where=f"%{smooth.node}",
                                   fix="leave this site out")
        place = 2 if node.target is ops.activation else 3
        kind = node.args[place - 1]
        if kind not in GATES:
            raise UnsupportedError(f"the activation {kind!r} cannot be smoothed", where=f"%{smooth.node}",
                                   fix=f"smooth one of {', '.join(GATES)}, or leave this site out")
        if len(node.args) <= place or node.args[place] is None:
            name = self._fresh(f"{smooth.node}.smooth")
            value = node.args[0].meta["val"]  # type: ignore[union-attr]
            ones = torch.ones(value.shape[-1], dtype=torch.float32, device=value.device)
            made = self._new_param(node, name, ones)
            node = self._node(smooth.node)  # of the copied graph
            node.args = (*node.args[:place], made)
        target = node.args[place]
        self._add(str(target.target), Scale((0,), factor), _mark(smooth.powers))  # type: ignore[union-attr]

    def _shift(self, site: Site, shift: Tensor) -> None:
        if site.unshiftable is not None:
            raise UnsupportedError(f"the activation cannot be shifted: {site.unshiftable}", where=site.name,
                                   fix="leave the shift of this site out")
        biases = Biases(self.graph)
        makers = [axis for axis in site.axes if axis.role in ("row", "affine") and not biases.adds(axis)]
        self._need_biases(site, [*makers, *site.columns], biases)
        done: set[tuple[str, str]] = set()
        for axis in site.columns:  # first: they meet the weights as they are now
            for node in biases.readers(axis):
                if (axis.param, node) not in done:
                    done.add((axis.param, node))
                    self._gain(axis, node, shift)
        for axis in makers:
            delta = along(axis, shift, self._like(axis.param).shape)
            self._add(self._bias(axis, axis.node), Add(-delta), "- δ")
        self.log.append(Change(self.by, site.name, f"shifted, {len(done)} consumers"))

    def _gain(self, axis: Axis, node: str, shift: Tensor) -> None:
        """A consumer's bias gains W δ."""
        like = self._like(axis.param)
        if like.dim() != 2 or len(axis.dims) != 1:
            raise UnsupportedError(f"a shift meets a weight of {like.dim()} dimensions", where=axis.param,
                                   fix="leave the shift of this site out")
        (dim,) = axis.dims
        rows = dict(axis.where).get(1 - dim)
        bias = self._bias(axis, node)
        base, weight_steps = self._now(axis.param)
        sources = self.sources.setdefault(bias, [])
        sources.append(base)
        step = AddProduct(len(sources) - 1, weight_steps, along(axis, shift, like.shape), dim, rows)
        self._add(bias, step, f"+ {axis.param} δ")

    # --------------------------------------------------------------------------------------------------- biases

    def _need_biases(self, site: Site, axes: Sequence[Axis], biases: Biases) -> None:
        """Refuse a shift that lacks a bias, or that would change one which other ops add too."""
        missing = []
        named = {axis.node: axis.bias for axis in axes if axis.role != "column"}
        for node in dict.fromkeys(node for axis in axes for node in biases.readers(axis)):
            found = named.get(node) or biases.at(node)
            if found is not None and len(biases.users(found)) > 1:
                raise UnsupportedError(f"the bias {found!r} is shared by {', '.join(biases.users(found))}",
                                       where=site.name, fix="give each its own copy, or leave this shift out")
            if found is None and not (self.add_bias and biases.can_add(node)):
                missing.append(node)
        if missing:
            fix = "leave this shift out" if self.add_bias else "allow biases to be added (add_bias=True)"
            raise UnsupportedError(f"a shift needs a bias on {', '.join(missing)}", where=site.name, fix=fix)

    def _bias(self, axis: Axis, node: str) -> str:
        """The name of the bias of an op, added if it has none."""
        found = axis.bias if axis.role != "column" else None
        found = found or Biases(self.graph).at(node)
        if found is not None:
            return found
        like = self._like(axis.param)
        count = like.shape[1 - axis.dims[0]] if axis.role == "column" else like.shape[0]
        zeros = torch.zeros(count, dtype=like.dtype, device=like.device)
        name = self._fresh(f"{axis.param.removesuffix('.weight')}.bias")
        made = self._new_param(self._node(node), name, zeros)
        Biases(self.graph).add(self._node(node), made)
        self.weights |= {name}  # so that the next method may re-scale it
        self.log.append(Change(self.by, node, f"bias {name} added"))
        return name

    # ----------------------------------------------------------------------------------------------- parameters

    def _add(self, name: str, step: Step, text: str) -> None:
        if name not in self.steps:
            self._check(name)
        self.steps.setdefault(name, []).append(step)
        self.history[name] = (*self.history.get(name, ()), f"{self.by}: {text}")

    def _check(self, name: str) -> None:
        like = self._like(name)
        if not like.dtype.is_floating_point:
            raise InputError(f"a parameter of {like.dtype} cannot be re-scaled", where=name, fix="check the site")
        if f"{name}.codes" in self.params:
            raise UnsupportedError("its codes are chosen already", where=name,
                                   fix="put the method that re-scales before the one that chooses codes")
        param = self.params[name]
        if self.read and isinstance(param, Tensor) and name in self.before.params:
            check_finite(name, param)

    def _like(self, name: str) -> Tensor:
        if name not in self.params:
            raise InputError("the site names a parameter that the program does not have", where=name,
                             fix="analyse this program again")
        param = self.params[name]
        return param.like if isinstance(param, Derived) else param

    def _now(self, name: str) -> tuple[str, tuple[Scale, ...]]:
        """What a weight is at this moment: the parameter it starts from, and its steps. Weights only scale."""
        param, steps = self.params[name], tuple(self.steps.get(name, ()))
        if isinstance(param, Derived) and isinstance(param.fn, Edited):
            name, steps = param.sources[0], (*param.fn.steps, *steps)
        scales = tuple(step for step in steps if isinstance(step, Scale))
        assert len(scales) == len(steps), name
        return name, scales

    def _fresh(self, name: str) -> str:
        number, found = 1, name
        while found in self.params:
            number += 1
            found = f"{name}_{number}"
        return found

    # ------------------------------------------------------------------------------------------------- the graph

    def _node(self, name: str) -> fx.Node:
        for node in self.graph.nodes:
            if node.meta.get("name") == name:
                found: fx.Node = node
                return found
        raise InputError("the site names a value that the program does not have", where=f"%{name}",
                         fix="analyse this program again")

    def _new_param(self, before: fx.Node, name: str, value: Tensor) -> fx.Node:
        """A parameter that the graph reads before ``before`` (which is looked up again: the graph may be copied)."""
        place = before.meta["name"]
        if not self.copied:
            self.graph, self.copied = copy_graph(self.graph)[0], True
        node = self._node(place)
        with self.graph.inserting_before(node):
            made = self.graph.create_node("get_attr", name)
        mode = node.meta["val"].fake_mode
        with mode:
            made.meta.update(name=name, val=torch.empty(value.shape, dtype=value.dtype, device=value.device))
        self.params[name] = value
        return made

    def program(self) -> Program:
        """The edited program."""
        params = dict(self.params)
        moved: dict[str, str] = {}
        for name in self.steps:
            if not _is_edited(params[name]):
                moved[name] = _base(name, params)
                params[moved[name]] = params[name]
        for name, param in params.items():
            if isinstance(param, Derived) and name not in moved and not moved.keys().isdisjoint(param.sources):
                params[name] = replace(param, sources=tuple(moved.get(source, source) for source in param.sources))
        for name, steps in self.steps.items():
            old = params[name]
            sources = [moved.get(source, source) for source in self.sources.get(name, ())]
            earlier = old if isinstance(old, Derived) and name not in moved else None
            params[name] = edited(name, earlier, moved.get(name, name), self._like(name), steps, sources)
        if self.copied:
            assign_names(self.graph)
        return replace(self.before, graph=self.graph, params=params, history=self.history, log=tuple(self.log),
                       weights=self.weights)  # fmt: skip


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise NumericsError if a parameter holds NaN or Inf."""
    if tensor.is_meta or not tensor.numel() or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        return
    bad = ~torch.isfinite(tensor)
    first = tuple(int(index) for index in bad.nonzero()[0])
    raise NumericsError(f"{int(bad.sum())} NaN or Inf values, the first at {first}", where=name,
                        fix="repair the checkpoint, or leave this parameter out of the method")


def _checked(site: Site, values: Tensor, word: str, *, positive: bool) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (site.size,) or values.is_complex():
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"a {word} of {got}, the site has {site.size} degrees of freedom", where=site.name,
                         fix=f"pass a tensor of [{site.size}]")
    wide = values.detach().to(torch.float64)
    wrong = ~torch.isfinite(wide) | ((wide <= 0) if positive else torch.zeros_like(wide, dtype=torch.bool))
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        need = "positive and finite" if positive else "finite"
        raise InputError(f"{int(wrong.sum())} entries of a {word} are not {need}, the first is {float(wide[index])} at "
                         f"{index}", where=site.name, fix="clamp what the method computes")  # fmt: skip
    return wide


def along(axis: Axis, shift: Tensor, shape: torch.Size) -> Tensor:
    """δ along the parameter's dimension that follows the site, in the dtype of ``shift``; 0 where nothing does."""
    if len(axis.dims) != 1 or axis.powers.index.shape[0] != 1:
        raise UnsupportedError("a shift follows one dimension and one factor a channel", where=axis.param,
                               fix="leave the shift of this site out")
    padded = torch.cat((shift, shift.new_zeros(1)))
    delta = padded[axis.powers.index[0].to(shift.device)]
    (dim,), where = axis.dims, dict(axis.where)
    if dim not in where:
        return delta
    chosen = where[dim].to(shift.device)
    full = shift.new_zeros(shape[dim])
    full[chosen] = delta if len(delta) == len(chosen) and len(delta) != shape[dim] else delta[chosen]
    return full


def _mark(powers: Powers) -> str:
    return {1: "* s", -1: "/ s", 0: "* s, / s"}[powers.sign]


def _is_edited(param: Param) -> bool:
    return isinstance(param, Derived) and isinstance(param.fn, Edited)


def _base(name: str, params: dict[str, Param]) -> str:
    number = 1
    while f"{name}@{number}" in params:
        number += 1
    return f"{name}@{number}"
