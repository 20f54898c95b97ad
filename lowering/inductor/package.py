"""A LOWERED program -> one AOTInductor package: a file that runs without qpass's Python, its weights inside.

Sizes stay as symbolic as they are in the program. Operators of ours are called by name, so whoever loads the package
registers them first: the library that has them is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch._inductor import aot_compile, aoti_load_package
from torch._inductor.package import package_aoti
from torch.utils import _pytree as pytree

from qpass.errors import UnsupportedError
from qpass.graph.program import Program, materialise
from qpass.lowering.inductor.compile import as_module
from qpass.lowering.inductor.loop_split import guarded


def package_program(program: Program, path: Path, options: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """Compile ``program`` into the file ``path``, which ends in ``.pt2``.

    Raises:
        UnsupportedError: Inductor cannot compile it so.
    """
    module = holding(program)
    inputs = tuple(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
    outputs = next(node for node in module.graph.nodes if node.op == "output").args[0]
    # what the loaded function is called with and gives: flat tensors, as ``Program.run``
    module._in_spec = pytree.tree_structure((inputs, {}))
    module._out_spec = pytree.tree_structure(tuple(0 for _ in outputs))
    settings = {"aot_inductor.package": True, **options}
    try:
        with torch.no_grad(), guarded():
            files = aot_compile(module, inputs, options=settings)
    except torch._inductor.exc.InductorError as error:
        raise UnsupportedError(f"AOTInductor could not compile the program: {error}",
                               fix="use qpass.compile, which compiles for this process") from error  # fmt: skip
    package_aoti(str(path), files)
    return path


def holding(program: Program) -> fx.GraphModule:
    """The graph as a module that holds its weights as buffers, inputs alone as placeholders."""
    module = as_module(program)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, (name, tensor) in zip(placeholders, materialise(program).items()):
        attribute = name.replace(".", "__").replace("/", "__").replace("+", "__")
        module.register_buffer(attribute, tensor)
        with graph.inserting_before(node):
            read = graph.get_attr(attribute)
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        graph.erase_node(node)
    return fx.GraphModule(module, graph)


def load(path: Path) -> Callable[..., tuple[Any, ...]]:
    """The function in a package: flat tensors in, a flat tuple out. Its operators must be registered."""
    found: Callable[..., tuple[Any, ...]] = aoti_load_package(str(path))
    return found
