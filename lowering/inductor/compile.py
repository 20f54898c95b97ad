"""A LOWERED program -> one Inductor artifact. The only file that calls Inductor; private torch names stay here.

Weights are inputs of the artifact, not constants: nothing is frozen, folded or copied, Inductor's own cache works,
and several artifacts can share one set of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import standalone_compile

from qpass.errors import UnsupportedError
from qpass.graph.program import Program, materialise
from qpass.lowering.inductor.loop_split import guarded
from qpass.lowering.memory import Trimmer, release


class Compiled(torch.nn.Module):
    """Flat tensors in, flat tuple out; weights are buffers named as the program's parameters."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        # Compiled before the weights are computed: the peak is then one of the two, not their sum.
        release()
        self._artifact = compile_program(program)
        self._attributes: list[str] = []
        release()
        trimmer = Trimmer()
        for name, tensor in materialise(program, lambda name: trimmer.add(program.like(name).nbytes)).items():
            attribute = name.replace(".", "__")
            self.register_buffer(attribute, tensor)
            self._attributes.append(attribute)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the artifact. Tensors as the program's placeholders; dynamic sizes may differ from call to call."""
        weights = [self._buffers[attribute] for attribute in self._attributes]
        # compiled for dense inputs; an expanded or transposed one is made dense
        dense = [value.contiguous() if isinstance(value, Tensor) else value for value in inputs]
        with torch.no_grad():
            return tuple(self._artifact(*weights, *dense))


def compile_program(program: Program, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The artifact: called with weights in ``used_params`` order, then inputs. ``options``: of its configuration."""
    module = as_module(program)
    examples = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    try:
        with torch.no_grad(), guarded():
            settings = {"config_patches": dict(options)} if options else {}
            return standalone_compile(module, examples, dynamic_shapes="from_graph", options=settings)
    except torch._inductor.exc.InductorError as error:
        raise UnsupportedError(
            f"Inductor could not compile the program: {error}", fix='use target="reference", and report this program'
        ) from error


def as_module(program: Program) -> fx.GraphModule:
    """The graph with its parameters as leading placeholders, in ``used_params`` order."""
    graph, mapping = fx.Graph(), {}
    for number, name in enumerate(program.used_params()):
        first = next(node for node in program.graph.nodes if node.op == "get_attr" and node.target == name)
        placeholder = graph.placeholder(f"param_{number}")
        placeholder.meta["val"] = first.meta["val"]
        mapping[name] = placeholder
    nodes: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            nodes[node] = graph.node_copy(node)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            nodes[node] = mapping[node.target]
        elif node.op == "output":
            output = graph.output(tuple(fx.map_arg(node.args[0], lambda arg: nodes[arg])))
            output.meta["val"] = tuple(arg.meta["val"] for arg in output.args[0])
        elif node.op != "placeholder":
            nodes[node] = graph.node_copy(node, lambda arg: nodes[arg])
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key in ("val", "stack_trace")}
    return fx.GraphModule(torch.nn.Module(), graph)
