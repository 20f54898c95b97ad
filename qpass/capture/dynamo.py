"""A graph from Dynamo -> CAPTURED, of the same form as ``from_export`` gives for the same model.

    gm(params..., sizes..., inputs...)   torch functions, parameters lifted to placeholders
    %x_1 = linear(%x, q_proj.weight)     functional ATen, parameters by name, inputs only

The graph is traced again on Dynamo's own fake tensors, so a size that qpass pins becomes a guard of Dynamo's, as it
does under Inductor. ``linear``, SDPA, ``layer_norm`` and the like stay whole by the same switch that torch.export uses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import tracing
from torch.export._trace import _ignore_backend_decomps
from torch.export.exported_program import (
    _override_composite_implicit_decomp,
    _split_decomp_table_to_cia_and_python_decomp,
)

from qpass.capture.blame import reason, user_line
from qpass.capture.module_names import clean_path, clean_scopes, identifier, parameter_names
from qpass.capture.program import from_flat
from qpass.capture.trace import session, symbol_of
from qpass.errors import CaptureError, InputError, UnsupportedError
from qpass.graph.program import Program

aten = torch.ops.aten


@dataclass(frozen=True)
class FlatCall:
    """How Dynamo's flat call maps to a program's, by position.

    Attributes:
        inputs: positions in Dynamo's arguments of the program's inputs, in order.
        params: (position in Dynamo's arguments, parameter name) of what the program holds itself.
        mutated: positions in Dynamo's arguments that the program's leading outputs are written back to.
        outputs: for each of Dynamo's outputs, None to take the program's next output, else ``(value,)``.
    """

    inputs: tuple[int, ...]
    params: tuple[tuple[int, str], ...]
    mutated: tuple[int, ...]
    outputs: tuple[tuple[Any] | None, ...]


@dataclass
class _Input:
    """One placeholder of Dynamo's graph."""

    position: int
    node: fx.Node
    value: Any  # fake tensor, SymInt or constant
    source: str

    @property
    def registered(self) -> bool:
        """Whether it is a parameter or buffer of a module."""
        return isinstance(self.value, Tensor) and ("_parameters[" in self.source or "_buffers[" in self.source
                                                   or isinstance(self.value, torch.nn.Parameter))


def from_dynamo(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Program:
    """CAPTURED program of a graph that Dynamo hands to a backend; its ``call`` is a ``FlatCall``.

    Registered parameters and buffers become ``get_attr`` by their name in the module, except buffers that the graph
    writes to: those stay inputs, as do all other tensors. Sizes are read off the inputs' shapes, as torch.export does.

    Raises:
        InputError: a gradient is asked for, or the model is in training mode.
        CaptureError: the graph cannot be brought to ATen.
        UnsupportedError: the graph holds what no program can, such as a branch on data, or writes to a parameter.
    """
    inputs = _inputs(gm)
    _refuse_grad(gm, example_inputs, inputs)
    order = _order(inputs)
    with session():
        traced, mutated = _to_aten(_without_scalars(gm, inputs, order), [item.value for item in order])
    written = {order[index].position for index in mutated}
    names = parameter_names([item.source for item in order if item.registered and item.position not in written])
    held = iter(names)
    named = [next(held) if item.registered and item.position not in written else None for item in order]
    return _program(gm, traced, example_inputs, order, named, [order[index].position for index in mutated])


def is_partial(gm: fx.GraphModule) -> bool:
    """Whether the graph is one of several that a graph break cut a function into."""
    broken = bool(getattr(getattr(gm, "compile_subgraph_reason", None), "graph_break", False))
    with contextlib.suppress(AttributeError):
        return broken or InstructionTranslator.current_tx().f_code.co_name.startswith("torch_dynamo_resume_in")
    return broken


def outside() -> contextlib.AbstractContextManager[None]:
    """Hide Dynamo's tracing from what runs inside: a pattern traced there would take its sizes for symbols."""
    return tracing(None)


def _inputs(gm: fx.GraphModule) -> list[_Input]:
    found = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            source = getattr(node.meta.get("grapharg"), "source", None)
            name = getattr(source, "name", None) or str(node.target)
            value = node.meta.get("example_value", node.meta.get("val"))
            found.append(_Input(len(found), node, value, name() if callable(name) else name))
    return found


def _refuse_grad(gm: fx.GraphModule, example_inputs: Sequence[Any], inputs: Sequence[_Input]) -> None:
    for node in gm.graph.nodes:
        if node.op == "call_function" and "dropout" in getattr(node.target, "__name__", "") and _drops(node):
            raise InputError("the model drops values at random: it is in training mode", where=_scope(node),
                             fix="call model.eval() before the first call")
    if not torch.is_grad_enabled():
        return
    for item, value in zip(inputs, example_inputs):
        if isinstance(value, Tensor) and value.requires_grad:
            raise InputError("a gradient is asked for, and quantized weights have none", where=_label(item),
                             fix="call the model under torch.no_grad() or torch.inference_mode()")


def _drops(node: fx.Node) -> bool:
    rate = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    return bool(training) and rate != 0


def _scope(node: fx.Node) -> str | None:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (clean_path(stack[-1][0]) or None) if stack else None


def _label(item: _Input) -> str:
    return clean_path(item.source) or identifier(item.source)


def _order(inputs: Sequence[_Input]) -> list[_Input]:
    """Tensors and free scalars: what the trace takes. Sizes of tensors are left out, they are read off the tensors."""
    sizes = set(_sizes(inputs))
    return [item for item in inputs if not (isinstance(item.value, torch.SymInt) and symbol_of(item.value) in sizes)]


def _sizes(inputs: Sequence[_Input]) -> dict[Any, tuple[_Input, int]]:
    """Symbol -> the first tensor and dim that has it as its size; user inputs before parameters."""
    found: dict[Any, tuple[_Input, int]] = {}
    for item in sorted(inputs, key=lambda item: item.registered):
        for dim, size in enumerate(item.value.shape if isinstance(item.value, Tensor) else ()):
            if isinstance(size, torch.SymInt):
                found.setdefault(symbol_of(size), (item, dim))
    return found


def _without_scalars(gm: fx.GraphModule, inputs: Sequence[_Input], order: Sequence[_Input]) -> fx.GraphModule:
    """A copy of the graph whose placeholders are ``order``; each dropped size is a ``sym_size`` of a tensor.

    Under ``dynamic=True`` Dynamo passes a float (the epsilon of a norm) as a tensor, and so hides the norm from qpass:
    such a float becomes a constant again, and Dynamo guards it.
    """
    graph, nodes, sizes = fx.Graph(), {}, _sizes(inputs)
    for item in order:
        nodes[item.node] = graph.node_copy(item.node)
    for item in inputs:
        if item.node not in nodes:
            owner, dim = sizes[symbol_of(item.value)]
            nodes[item.node] = graph.call_function(aten.sym_size.int, (nodes[owner.node], dim))
    floats = {item.node for item in order if getattr(item.node.meta.get("grapharg"), "pass_arg_as_tensor", False)}
    for node in gm.graph.nodes:
        if node.op == "call_method" and node.target == "item" and node.args[0] in floats:
            nodes[node] = float(node.meta["example_value"])
        elif node.op != "placeholder":
            nodes[node] = graph.node_copy(node, lambda arg: nodes[arg])
    return fx.GraphModule(gm, graph)


def _to_aten(gm: fx.GraphModule, values: Sequence[Any]) -> tuple[fx.GraphModule, list[int]]:
    """Functional ATen of ``gm`` with composite ops whole, and the positions of the inputs it wrote to.

    The leading outputs are those inputs' new values. Tensors that ``gm`` holds become leading placeholders.
    """
    whole, _ = _split_decomp_table_to_cia_and_python_decomp({})
    try:
        with _override_composite_implicit_decomp(whole), _ignore_backend_decomps():
            traced, signature = aot_export_module(gm, tuple(values), trace_joint=False, decompositions={})
    except Exception as error:
        raise CaptureError(
            f"the graph from torch.compile could not be brought to ATen: {type(error).__name__}: {reason(error)}",
            where=user_line(error), fix="compile without that part of the model, or report this graph",
        ) from error
    if signature.buffers_to_mutate or getattr(signature, "parameters_to_mutate", None):
        raise UnsupportedError("the graph writes to a constant that it made itself", fix="keep that state in a buffer")
    held = len(signature.parameters) + len(signature.buffers)
    positions = {name: index for index, name in enumerate(signature.user_inputs)}
    mutated = [positions[name] for name in signature.user_inputs_to_mutate.values()]
    constants = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    lifted = [constants[name] for name in (*signature.parameters, *signature.buffers)]
    for node, tensor in zip([node for node in traced.graph.nodes if node.op == "placeholder"][:held], lifted):
        node.meta["constant"] = tensor
    return traced, mutated


def _program(
    gm: fx.GraphModule, traced: fx.GraphModule, example_inputs: Sequence[Any], order: Sequence[_Input],
    named: Sequence[str | None], mutated: Sequence[int],
) -> Program:  # fmt: skip
    params: dict[str, Tensor] = {}
    targets: dict[fx.Node, str] = {}
    inputs: list[int] = []
    users = iter(zip(order, named))
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            targets[node], value = f"lifted_tensor_{len(targets)}", getattr(traced, str(node.target), None)
            if not isinstance(value, Tensor):
                raise UnsupportedError("the graph has a branch or loop on data", where=str(node.target),
                                       fix="replace torch.cond and the like by torch.where")
            params[targets[node]] = value.detach()
        elif node.op == "placeholder" and "constant" in node.meta:
            targets[node] = f"constant_{len(targets)}"
            params[targets[node]] = node.meta.pop("constant").detach()
        elif node.op == "placeholder":
            item, name = next(users)
            if name is not None:
                targets[node] = name
                params[name] = example_inputs[item.position].detach()
            elif node.users:
                node.target = identifier(item.source)
                inputs.append(item.position)
            else:
                traced.graph.erase_node(node)
    outputs = _take_literals(traced.graph, len(mutated))
    held = tuple((item.position, name) for item, name in zip(order, named) if name is not None)
    call = FlatCall(tuple(inputs), held, tuple(mutated), outputs)
    program = from_flat(traced.graph, params, targets, clean_scopes)
    weights = frozenset(name for item, name in zip(order, named)
                        if name is not None and isinstance(example_inputs[item.position], nn.Parameter))  # fmt: skip
    return replace(program, dims=_dims(order, inputs), call=call, weights=weights)


def _take_literals(graph: fx.Graph, leading: int) -> tuple[tuple[Any] | None, ...]:
    """Leave nodes only in the output; what else was there, by position after the ``leading`` ones."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    values = list(output.args[0])
    output.args = (tuple(value for value in values if isinstance(value, fx.Node)),)
    return tuple(None if isinstance(value, fx.Node) else (value,) for value in values[leading:])


def _dims(order: Sequence[_Input], inputs: Sequence[int]) -> Mapping[str, str]:
    """Readable name of each symbol: after the first input that has it, as ``capture.trace.dim_names`` does."""
    found: dict[str, str] = {}
    for item in order:
        if item.position in inputs and isinstance(item.value, Tensor):
            for dim, size in enumerate(item.value.shape):
                symbol = symbol_of(size)
                if symbol is not None and symbol.is_Symbol:
                    found.setdefault(str(symbol), f"{identifier(item.source)}_dim{dim}")
    return found
