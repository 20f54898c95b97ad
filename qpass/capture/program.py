"""A traced graph -> CAPTURED: parameters become ``get_attr`` by name, user inputs stay placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import ConstantArgument, InputKind

from qpass.graph.program import Param, Program
from qpass.graph.values import assign_names, clean_scopes


def from_export(exported: torch.export.ExportedProgram, *, prefix: str, dims: dict[str, str], call: Any) -> Program:
    """CAPTURED program of an ExportedProgram. ``prefix`` is stripped from parameter and module names.

    Constants among inputs and outputs are not part of the program: ``call`` puts them back.
    """
    params: dict[str, Param] = {}
    targets: dict[str, str] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            name = str(spec.target).removeprefix(prefix)
            targets[spec.arg.name] = name
            params[name] = _tensor(exported, str(spec.target)).detach()
    held = {node: targets[node.name] for node in exported.graph.nodes
            if node.op == "placeholder" and node.name in targets}  # fmt: skip
    values = {spec.arg.name: spec.arg.value for spec in exported.graph_signature.input_specs
              if isinstance(spec.arg, ConstantArgument)}
    constants = {node: values[node.name] for node in exported.graph.nodes if node.name in values}
    program = from_flat(exported.graph, params, held, lambda stack: clean_scopes(stack, prefix), constants)
    weights = frozenset(str(spec.target).removeprefix(prefix) for spec in exported.graph_signature.input_specs
                        if spec.kind == InputKind.PARAMETER)  # fmt: skip
    return Program(program.graph, program.params, stage="CAPTURED", dims=dims, call=call, weights=weights)


def from_flat(
    source: fx.Graph, params: Mapping[str, Param], held: Mapping[fx.Node, str],
    scopes_of: Callable[[Any], tuple[str, ...]], constants: Mapping[fx.Node, Any] | None = None,
) -> Program:  # fmt: skip
    """CAPTURED program of a flat functional ATen graph: one form, whichever tracer made the graph.

    Args:
        held: node -> name of the parameter that it stands for. The program lists parameters in order of first use, as
            tracers disagree on any other order; one that nothing uses is left out.
        scopes_of: the module paths of an ``nn_module_stack``, outermost first.
        constants: inputs that are no tensor -> the value that the graph was made for. They are no inputs of the
            program, and constant outputs none of its outputs.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, Any] = dict(constants or {})
    used = dict.fromkeys(arg for node in source.nodes for arg in node.all_input_nodes if arg in held)
    rest = [node for node in source.nodes if node not in held and node not in mapping]
    for node in (*used, *rest):
        mapping[node] = new = _copy(graph, node, mapping, held)
        new.meta = {key: node.meta[key] for key in ("val", "stack_trace") if key in node.meta}
        # an input's size belongs to no module: tracers put it in whichever asked for it first
        size = node.target is torch.ops.aten.sym_size.int and node.args[0].op == "placeholder"
        new.meta["scopes"] = () if size else scopes_of(node.meta.get("nn_module_stack"))
    assign_names(graph)
    return Program(graph, {held[node]: params[held[node]] for node in used}, stage="CAPTURED")


def _copy(graph: fx.Graph, node: fx.Node, mapping: dict[fx.Node, Any], held: Mapping[fx.Node, str]) -> fx.Node:
    if node in held:
        return graph.create_node("get_attr", held[node])
    if node.op == "output":
        return graph.output([mapping[arg] for arg in node.args[0] if isinstance(arg, fx.Node)])
    return graph.node_copy(node, lambda arg: mapping[arg])


def _tensor(exported: torch.export.ExportedProgram, name: str) -> torch.Tensor:
    found = exported.state_dict.get(name)
    return found if found is not None else exported.constants[name]
