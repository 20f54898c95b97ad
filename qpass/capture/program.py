"""An exported program -> CAPTURED: parameters become ``get_attr`` by name, user inputs stay placeholders."""

from __future__ import annotations

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
    graph = fx.Graph()
    mapping: dict[fx.Node, Any] = {}
    constants = {spec.arg.name: spec.arg.value for spec in exported.graph_signature.input_specs
                 if isinstance(spec.arg, ConstantArgument)}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in constants:
            mapping[node] = constants[node.name]  # an argument that is no tensor: the graph was made for this value
            continue
        mapping[node] = _copy(graph, node, mapping, targets)
        meta = {key: node.meta[key] for key in ("val", "stack_trace") if key in node.meta}
        meta["scopes"] = clean_scopes(node.meta.get("nn_module_stack"), prefix)
        mapping[node].meta = meta
    assign_names(graph)
    return Program(graph, params, stage="CAPTURED", dims=dims, call=call)


def _copy(graph: fx.Graph, node: fx.Node, mapping: dict[fx.Node, Any], targets: dict[str, str]) -> fx.Node:
    if node.op == "placeholder" and node.name in targets:
        return graph.create_node("get_attr", targets[node.name])
    if node.op == "output":
        return graph.output([mapping[arg] for arg in node.args[0] if isinstance(arg, fx.Node)])
    return graph.node_copy(node, lambda arg: mapping[arg])


def _tensor(exported: torch.export.ExportedProgram, name: str) -> torch.Tensor:
    found = exported.state_dict.get(name)
    return found if found is not None else exported.constants[name]
