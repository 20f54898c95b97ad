"""A LOWERED program with regions -> one small Inductor artifact for each, called from plain Python.

An integer op is a hundred small ones, many of them on one number a row. As one graph of all layers Inductor would take
minutes for a model of six layers, and work out a row's numbers again for each element. Regions are compiled once for
every op and types, however many layers there are; what is between them moves data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor import standalone_compile

from qpass.errors import UnsupportedError
from qpass.graph.program import Program, materialise
from qpass.lowering import Region
from qpass.lowering.inductor.compile import as_module
from qpass.lowering.inductor.loop_split import guarded


class _Artifact(torch.nn.Module):
    """One compiled region. Tensors in, one tensor or a tuple out."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        graph = region.graph
        examples = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
        output = next(node for node in graph.nodes if node.op == "output")
        self._single = not isinstance(output.args[0], list | tuple) or len(output.args[0]) == 1
        try:
            with torch.no_grad(), guarded():
                module = fx.GraphModule(torch.nn.Module(), _flat(graph))
                self._artifact = standalone_compile(module, examples, dynamic_shapes="from_graph", options={})
        except torch._inductor.exc.InductorError as error:
            raise UnsupportedError(
                f"Inductor could not compile {region.name}: {error}", fix='use target="reference", and report this'
            ) from error

    def forward(self, *inputs: Any) -> Any:
        """Run it. Compiled for dense inputs; a transposed one is made dense."""
        results = self._artifact(*[value.contiguous() if isinstance(value, Tensor) else value for value in inputs])
        return results[0] if self._single else tuple(results)


def _flat(graph: fx.Graph) -> fx.Graph:
    """A copy whose output is a tuple and whose nodes carry their types alone."""
    new, mapping = fx.Graph(), {}
    for node in graph.nodes:
        if node.op == "output":
            results = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
            output = new.output(tuple(mapping[arg] for arg in results))
            output.meta["val"] = tuple(arg.meta["val"] for arg in results)
        else:
            mapping[node] = new.node_copy(node, lambda arg: mapping[arg])
            mapping[node].meta = {"val": node.meta["val"]}
    return new


class Regions(torch.nn.Module):
    """Flat tensors in, flat tuple out; weights are buffers named as the program's parameters."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        module = as_module(program)
        names: dict[Region, str] = {}
        for node in list(module.graph.nodes):
            if isinstance(node.target, Region):
                if node.target not in names:
                    names[node.target] = f"region_{len(names)}"
                    module.add_submodule(names[node.target], _Artifact(node.target))
                with module.graph.inserting_before(node):
                    node.replace_all_uses_with(module.graph.call_module(names[node.target], node.args))
                module.graph.erase_node(node)
        module.recompile()
        self._module = module
        self._attributes: list[str] = []
        for name, tensor in materialise(program).items():
            attribute = name.replace(".", "__").replace("/", "__")
            self.register_buffer(attribute, tensor)
            self._attributes.append(attribute)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Run it. Tensors as the program's placeholders; dynamic sizes may differ from call to call."""
        weights = [self._buffers[attribute] for attribute in self._attributes]
        with torch.no_grad():
            return tuple(self._module(*weights, *inputs))
