"""SOLVED -> QUANTISED: quantize and dequantize, spelled in torchao's primitives, around every linear with a scheme.

before   %q = linear(%x, w)
after    %w_q = dequantize_affine(w.codes, [1, 128], w.scale, w.zero, u8, 0, 15, bf16)
         %q = linear(%x_q, %w_q)        %x_q shared by every linear that reads %x in one format

This is the interchange form: weights are plain tensors of codes, scales and zero points. Formats that torchao has no
primitive for are spelled in ``qpass.quantize`` and ``qpass.dequantize_weight`` (``qpass.numerics.codec`` says which). A
format with a low-rank branch adds two linears beside the first: %q + linear(linear(%x_q, V), U).
Operands of an attention with a scheme are spelled as inputs are, each row on its own: keys and values when they are
read, behind the cache, which stays as it is.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import NumericsError
from qpass.formats import Format, Scheme
from qpass.graph.program import Change, Derived, Param, Program, copy_graph
from qpass.graph.values import assign_names
from qpass.numerics import codec, low_rank
from qpass.numerics.low_rank import DOWN, UP
from qpass.numerics.scales import Scales, beyond, beyond_limit
from qpass.passes.plan_attention import scheme_of
from qpass.passes.spell import Builder, spell_attention, spell_input, spell_weight

aten = torch.ops.aten


def quantise(program: Program) -> Program:
    """Round every planned weight to nearest, unless a method has left its codes, and insert quantize-dequantize.

    Raises:
        NumericsError: NaN or Inf in a weight, with its name, count and first index; scales its format cannot hold.
    """
    graph, _ = copy_graph(program.graph)
    state = _State(replace(program, graph=graph))
    for node in [node for node in graph.nodes if node.meta.get("plan") and node.meta["plan"].scheme]:
        state.linear(node)
    for node in [node for node in graph.nodes if getattr(node.meta.get("experts"), "scheme", None)]:
        state.experts(node)
    for node in [node for node in graph.nodes if scheme_of(node)]:
        state.attention(node)
    graph.eliminate_dead_code()
    assign_names(graph)
    log = (*program.log, *state.log)
    return program.with_graph(graph, params=state.params, history=state.history, stage="QUANTISED", log=log)


class _State:
    """What one run has made so far; linears that share a weight or an input share its quantized form."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.params: dict[str, Param] = dict(program.params)
        self.history = dict(program.history)
        self.log: list[Change] = []
        self.types: dict[Any, Tensor] = {}
        self.inputs: dict[tuple[fx.Node, Format], fx.Node] = {}
        self.weights: dict[tuple[fx.Node, Format], fx.Node] = {}
        self.rounded: dict[tuple[fx.Node, Format], fx.Node] = {}
        self.factors: dict[str, fx.Node] = {}

    def linear(self, node: fx.Node) -> None:
        """Put quantize-dequantize around one linear, and its branch beside it."""
        choice, x, name = node.meta["plan"], node.args[0], str(node.args[1].target)  # type: ignore[union-attr]
        self._operands(node, choice.scheme)
        if choice.branch:
            self._branch(node, node.args[0] if choice.branch[0].scheme else x, name)

    def experts(self, node: fx.Node) -> None:
        """Put quantize-dequantize around one linear of experts, whose weights are rows of one matrix."""
        self._operands(node, node.meta["experts"].scheme)

    def _operands(self, node: fx.Node, scheme: Scheme) -> None:
        x, weight = node.args[:2]
        assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
        build = Builder(self.program.graph, node, self.types)
        fmt = scheme.weight
        if (weight, fmt) not in self.weights:
            value = self.program.tensor(str(weight.target))
            check_finite(str(weight.target), value)
            self._derive(str(weight.target), value.flatten(0, -2), fmt)
            self.weights[weight, fmt] = spell_weight(build, weight, fmt.plain, self.params)
        node.replace_input_with(weight, self.weights[weight, fmt])
        if scheme.input is not None:
            if (x, scheme.input) not in self.inputs:
                self.inputs[x, scheme.input] = self._input(build, x, scheme.input, str(weight.target))
            node.args = (self.inputs[x, scheme.input], *node.args[1:])

    def attention(self, node: fx.Node) -> None:
        """Put quantize-dequantize around the operands of one attention; those that share one share its rounded form."""
        build = Builder(self.program.graph, node, self.types)
        made = spell_attention(build, node, self._operand)
        made.meta.update({**node.meta, "rule": "quantise"})
        node.replace_all_uses_with(made)
        self.program.graph.erase_node(node)

    def _operand(self, build: Builder, x: fx.Node, fmt: Format) -> fx.Node:
        if (x, fmt) not in self.rounded:
            self.rounded[x, fmt] = spell_input(build, x, fmt, ())
            self.rounded[x, fmt].meta["rounds"] = str(fmt)
        return self.rounded[x, fmt]

    def _input(self, build: Builder, x: fx.Node, fmt: Format, weight: str) -> fx.Node:
        """A static scale is the one of the first linear that reads the value; they all saw the same."""
        parts = [f"{weight}.{part}" for part in ("input_scale", "input_zero")] if fmt.static else []
        if parts and parts[0] not in self.params:
            raise NumericsError("its input has a static scale, and none was observed", where=weight,
                                fix="pass calibration=[batch, ...] to qpass.compile")  # fmt: skip
        return spell_input(build, x, fmt, [build.param(name, self.params[name]) for name in parts])

    def _derive(self, name: str, value: Tensor, fmt: Format) -> None:
        """Scales that no method has set, as tensors; codes that none has set, to be computed when asked for."""
        parts = ("scale", "zero", "outer")
        if f"{name}.scale" not in self.params:
            try:
                found = codec.choose(value, fmt.plain)
            except NumericsError as error:
                raise NumericsError(error.what, where=name, fix=error.fix) from error
            for part, tensor in zip(parts, found):
                if tensor is not None:
                    self._set(f"{name}.{part}", tensor, name, f"round to nearest {fmt.plain}")
            self._count_limited(name, value, fmt)
        if f"{name}.codes" not in self.params:
            have = [part for part in parts if f"{name}.{part}" in self.params]
            sources = (name, *(f"{name}.{part}" for part in have))
            like = torch.empty(value.shape, dtype=fmt.code_dtype, device="meta")
            derived = Derived(sources, functools.partial(_round, have=have, fmt=fmt.plain), like)
            self._set(f"{name}.codes", derived, name, f"round to nearest {fmt.plain}")
        if fmt.rank and f"{name}.{UP}" not in self.params:
            self._factors(name, value, fmt)

    def _count_limited(self, name: str, value: Tensor, fmt: Format) -> None:
        """A line in the log where M2's shifts end before a group does."""
        if fmt.scale_kind.outer == "row":
            limited = beyond(codec.group_amax(value, fmt), fmt)
            if bool(limited.any()):
                what = f"{beyond_limit(int(limited.sum()), limited.numel())}, rounded at that limit"
                self.log.append(Change("quantise", name, what))

    def _factors(self, name: str, value: Tensor, fmt: Format) -> None:
        """LoRC's plain form, where no method has chosen the factors: the SVD of the error of the codes."""
        found = Scales(*(self.params.get(f"{name}.{part}") for part in ("scale", "zero", "outer")))  # type: ignore[arg-type]
        codes = self.params[f"{name}.codes"]
        if isinstance(codes, Derived):
            codes = codec.quantize(value, found, fmt.plain)
        error = value.float() - codec.dequantize(codes, found, fmt.plain, torch.float32)
        for part, factor in zip((UP, DOWN), low_rank.factors(error, fmt.rank)):
            self._set(f"{name}.{part}", factor.to(value.dtype), name, f"rank {fmt.rank} of the error")

    def _set(self, name: str, param: Param, weight: str, what: str) -> None:
        self.params[name] = param
        self.history[name] = (*self.history.get(weight, ()), f"{weight}: {what}")

    def _branch(self, node: fx.Node, x: fx.Node, name: str) -> None:
        """%node -> %node + linear(linear(%x, V), U). Float factors read the input as it is, int8 ones its codes."""
        build = Builder(self.program.graph, node.next, self.types)
        for part, choice in zip((DOWN, UP), node.meta["plan"].branch):
            shape = (*node.meta["val"].shape[:-1], choice.shape[0])
            factor = f"{name}.{part}"
            if factor not in self.factors:
                self.factors[factor] = self._factor(build, factor, choice.scheme)
            value = build.type(shape, node.meta["val"].dtype)
            x = build.call(aten.linear.default, x, self.factors[factor], val=value)
            x.meta["plan"] = choice
        users = list(node.users)
        total = build.call(aten.add.Tensor, node, x, val=node.meta["val"])
        for user in users:
            user.replace_input_with(node, total)

    def _factor(self, build: Builder, name: str, scheme: Scheme | None) -> fx.Node:
        weight = build.param(name, self.params[name])
        if scheme is None:
            return weight
        self._derive(name, self.program_tensor(name), scheme.weight)
        return spell_weight(build, weight, scheme.weight, self.params)

    def program_tensor(self, name: str) -> Tensor:
        """A parameter that this run may have set."""
        return replace(self.program, params=self.params).tensor(name)


def _round(weight: Tensor, *found: Tensor, have: list[str], fmt: Format) -> Tensor:
    return codec.quantize(weight.flatten(0, -2), Scales(**dict(zip(have, found))), fmt)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise NumericsError for a parameter with NaN or Inf."""
    if all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):  # NaN and Inf reach the ends; nothing is copied
        return
    bad = ~torch.isfinite(tensor)
    first = tuple(int(index) for index in bad.nonzero()[0])
    raise NumericsError(f"{int(bad.sum())} NaN or Inf values, the first at {first}", where=name,
                        fix="repair the checkpoint, or keep this linear in float with the line "
                            f'"{name}": keep')  # fmt: skip

