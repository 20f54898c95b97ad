"""FUSED -> LOWERED: each quantized linear becomes its kernel's call, every other dialect op its meaning in ATen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from qpass import ops
from qpass.capture.template import Template, trace
from qpass.errors import VerifyError
from qpass.formats import Format
from qpass.fusions import PRODUCERS
from qpass.graph.program import Derived, Param, Program, copy_graph
from qpass.graph.values import assign_names, op_name
from qpass.lowering import Kernel, Provider, Region
from qpass.numerics import codec
from qpass.passes.join import join
from qpass.passes.plan import case_of, choice_of
from qpass.passes.providers import context_of, provider_refuses
from qpass.passes.spell import Builder, spell_input


def lower(
    program: Program, providers: Mapping[str, Provider] = MappingProxyType({}), regions: bool = False,
    joins: Sequence[Any] = (),
) -> Program:  # fmt: skip
    """Kernels are those that the plan picked. A meaning is traced once per op and types, then copied.

    ``providers``: the target's, by op of the dialect; where one takes a node, its call stands for the meaning.
    ``regions``: leave an integer op one node, whose target is its meaning, traced once per op and types.
    ``joins``: the target's too, of what providers call.
    """
    graph, _ = copy_graph(program.graph)
    params: dict[str, Param] = dict(program.params)
    history = dict(program.history)
    templates: dict[Any, Template] = {}
    packed: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target in _LINEARS:
            added = _kernel(graph, node, program, templates, packed)
            params.update(added)
            history.update({name: (f"packed for {choice_of(node).kernel.name}",) for name in added})
    takers = Takers(providers, context_of(program))
    if regions:
        _outline(graph, takers)
    made = _inline_meanings(graph, templates, takers, packed)
    history.update({name: ("packed for the target",) for name in made if name not in params})
    params = made | params
    join(graph, joins)
    graph.eliminate_dead_code()
    assign_names(graph)
    return program.with_graph(graph, params=params, history=history, stage="LOWERED")


_LINEARS = {
    ops.linear: 3, ops.weight_only_linear: 1, ops.quantized_grouped_linear: 3, ops.weight_only_grouped_linear: 1,
}  # fmt: skip
"""Ops that a kernel computes, and how many of their arguments are the input's."""


def _inline_meanings(
    graph: fx.Graph, templates: dict[Any, Template], takers: Takers, packed: dict[str, fx.Node]
) -> dict[str, Param]:
    """Put each dialect op's meaning in its place, until none is left: meanings may be written in other ops of it.

    Returns the parameters that providers packed. ``packed``: as ``made`` in ``_kernel``.
    """
    types: dict[Any, torch.Tensor] = {}
    params: dict[str, Param] = {}
    while left := [node for node in graph.nodes if node.op == "call_function" and _op_of(node)]:
        for node in left:
            if node.target in _PRODUCER_OF:
                _split(graph, node, templates)
            if node.target is ops.quantize and _spelled(graph, node, types):
                continue
            if node.target is ops.fake_quantize:
                _rounded(graph, node, types)
                continue
            provider, fn, args = takers.of(node), ops.REGISTRY[_op_of(node)].meaning, node.args
            if provider is not None:
                fn = provider.call
                if provider.prepare is not None:
                    fn, args = _prepared(graph, node, provider, packed, params)
            _inline(graph, node, templates, node.target, fn, args)
    return params


def _prepared(
    graph: fx.Graph, node: fx.Node, provider: Provider, packed: dict[str, fx.Node], params: dict[str, Param]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The provider's call with what it wants to have packed as last arguments, and all of the arguments."""
    assert provider.prepare is not None
    given = [(str(arg.target), arg.meta["val"]) if isinstance(arg, fx.Node) and arg.op == "get_attr" else arg
             for arg in node.args]  # fmt: skip
    wanted = provider.prepare(*given)
    count, keys = len(node.args), list(wanted)
    for name, param in wanted.values():
        params[name] = param
        if name not in packed:
            packed[name] = _packed(graph, node, name, param)

    def call(*values: Any) -> Any:
        return provider.call(*values[:count], **dict(zip(keys, values[count:])))

    return call, (*node.args, *(packed[name] for name, _ in wanted.values()))


@dataclass(frozen=True)
class Takers:
    """The target's providers, for programs of up to ``context`` tokens."""

    providers: Mapping[str, Provider]
    context: int

    def of(self, node: fx.Node) -> Provider | None:
        """The provider that computes the node, if there is one."""
        provider = self.providers.get(_op_of(node))
        if provider is None or provider_refuses(provider, node, self.context) is not None:
            return None
        return provider


def _outline(graph: fx.Graph, takers: Takers) -> None:
    """Make each integer op that no provider takes a call of its region.

    It is many small ops, and the layers are alike.
    """
    made: dict[Any, Region] = {}
    for node in graph.nodes:
        name = _op_of(node) if node.op == "call_function" else ""
        if not name.startswith("integer_") or takers.of(node) is not None:
            continue
        key = (node.target, _types(node.args))
        if key not in made:
            made[key] = Region(name, trace(ops.REGISTRY[name].meaning, node.args).graph)
            _check_types(node, made[key])
        tensors = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
        node.target, node.args = made[key], tensors


def _check_types(node: fx.Node, region: Region) -> None:
    """Raise VerifyError where a pass has given a result another type than its op gives it."""
    output = next(part for part in region.graph.nodes if part.op == "output")
    results = output.args[0] if isinstance(output.args[0], list | tuple) else [output.args[0]]
    given = node.meta["val"] if isinstance(node.meta["val"], tuple) else [node.meta["val"]]
    for one, two in zip(results, given, strict=True):
        got = one.meta["val"]
        if got.dtype != two.dtype or [str(size) for size in got.shape] != [str(size) for size in two.shape]:
            what = f"{two.dtype}{list(two.shape)} in place of {got.dtype}{list(got.shape)} from {region.name}"
            raise VerifyError(what, where=f"%{node.meta['name']}")


_PRODUCER_OF = {fused: producer for producer, fused in PRODUCERS.items()}


def _split(graph: fx.Graph, node: fx.Node, templates: dict[Any, Template]) -> None:
    """norm_quantize(x) -> quantize(norm(x)), which is what it means; ``_spelled`` then knows what to do."""
    *args, fmt = node.args
    producer = _PRODUCER_OF[node.target]
    result = _copied(graph, node, templates, producer, _meaning(producer), args)[0]
    result.meta["name"] = node.meta["name"].removesuffix(".quantized")
    node.target, node.args = ops.quantize, (result, fmt)


def _spelled(graph: fx.Graph, node: fx.Node, types: dict[Any, torch.Tensor]) -> bool:
    """Replace a quantize by torchao's primitives, if its format has them, with types that are known.

    To trace it would run those primitives on symbolic shapes, tens of milliseconds for each shape of a model.
    """
    x, fmt = node.args[0], Format.parse(str(node.args[1]))
    assert isinstance(x, fx.Node)
    if fmt.granularity != "token" or fmt.static or codec.spelling(fmt) != codec.AFFINE:
        return False
    before = node.prev
    whole = spell_input(Builder(graph, node, types), x, fmt, ())
    codes, _, scale, zero = whole.args[:4]
    parts = (codes, scale, zero)
    made = before.next
    while made is not node:
        made.meta.pop("rule", None)
        made = made.next
    for user in list(node.users):
        part = parts[int(user.args[1])]  # type: ignore[call-overload]
        user.replace_all_uses_with(part)
        _take_name(part, user)
        graph.erase_node(user)
    graph.erase_node(whole)
    graph.erase_node(node)
    return True


def _rounded(graph: fx.Graph, node: fx.Node, types: dict[Any, torch.Tensor]) -> None:
    """Replace a fake_quantize by the pair that it was fused from."""
    x, fmt = node.args[0], Format.parse(str(node.args[1]))
    assert isinstance(x, fx.Node)
    whole = spell_input(Builder(graph, node, types), x, fmt, ())
    name = whole.meta.pop("name")
    node.replace_all_uses_with(whole)
    _take_name(whole, node)
    whole.meta.setdefault("name", name)
    graph.erase_node(node)


def _meaning(op: Any) -> Callable[..., Any]:
    return ops.REGISTRY[op_name(op).removeprefix("qpass.")].meaning


def _op_of(node: fx.Node) -> str:
    """The name of a dialect op; empty for any other node."""
    name = op_name(node.target)
    return name.removeprefix("qpass.") if name.startswith("qpass.") else ""


def _kernel(
    graph: fx.Graph, node: fx.Node, program: Program, templates: dict[Any, Template], made: dict[str, fx.Node]
) -> dict[str, Derived]:
    """Replace a quantized linear by its kernel's call; return the packed weights it needs.

    ``made``: the packed weights that the graph reads already, by name; linears that share a weight share them.
    """
    choice = choice_of(node)
    kernel: Kernel = choice.kernel
    count = _LINEARS[node.target]
    inputs, (*operands, bias) = node.args[:count], node.args[count : count + 5]
    if choice.experts:
        inputs, bias, count = (*inputs, bias), None, count + 1  # offsets are where a linear has its bias
    codes = operands[0]
    case = case_of(choice, node.meta["val"].dtype)
    parts = {key: part for key, part in zip(("codes", "scale", "zero", "outer"), operands) if part is not None}
    packed = kernel.prepare({key: part.target for key, part in parts.items()}, program, case)
    base = str(codes.target).removesuffix(".codes")
    for key, param in packed.items():
        if f"{base}.{key}" not in made:
            made[f"{base}.{key}"] = _packed(graph, node, f"{base}.{key}", param)
    weights = {key: made[f"{base}.{key}"] for key in packed}
    weights |= {key: parts[key] for key in kernel.parts if key in parts and not (packed and key == "codes")}
    keys = list(weights)

    def call(*values: Any) -> Any:
        *tensors, bias_value = values
        return kernel.call(tuple(tensors[:count]), dict(zip(keys, tensors[count:])), bias_value, case)

    _inline(graph, node, templates, (kernel.name, case, tuple(keys)), call, (*inputs, *weights.values(), bias))
    return {f"{base}.{key}": param for key, param in packed.items()}


def _packed(graph: fx.Graph, node: fx.Node, name: str, param: Derived) -> fx.Node:
    with graph.inserting_before(node):
        made = graph.create_node("get_attr", name)
    value = node.meta["val"]
    value = value[0] if isinstance(value, tuple) else value
    with value.fake_mode:
        made.meta.update(name=name, val=torch.empty(param.like.shape, dtype=param.like.dtype, device=value.device))
    return made


def _inline(
    graph: fx.Graph, node: fx.Node, templates: dict[Any, Template], key: Any, fn: Callable[..., Any], args: Any
) -> None:
    """Put what ``fn`` does in place of ``node``; equal keys and types share one trace."""
    results = _copied(graph, node, templates, key, fn, args)
    if len(results) == 1 and isinstance(node.meta["val"], torch.Tensor):
        _take_name(results[0], node)
        results[0].meta.update({key: node.meta[key] for key in ("plan",) if key in node.meta})
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            _take_name(results[user.args[1]], user)
            graph.erase_node(user)
    graph.erase_node(node)


def _copied(
    graph: fx.Graph, node: fx.Node, templates: dict[Any, Template], key: Any, fn: Callable[..., Any], args: Any
) -> list[fx.Node]:
    """The nodes of ``fn`` before ``node``, traced unless the key and the types are known; its results."""
    full = (key, _types(args))
    if full not in templates:
        templates[full] = trace(fn, args)
    return templates[full].copy_into(graph, node, args)


def _take_name(new: fx.Node, old: fx.Node) -> None:
    if new.op == "call_function" and "name" in old.meta:
        new.meta["name"] = old.meta.pop("name")


def _types(args: Any) -> str:
    """The types and literals of arguments, as a key."""
    return repr([_type(arg) for arg in args])


def _type(arg: Any) -> Any:
    if isinstance(arg, fx.Node):
        value = arg.meta["val"]
        return (value.dtype, [str(size) for size in value.shape], [str(step) for step in value.stride()])
    return arg
