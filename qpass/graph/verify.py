"""Is this graph well formed? The checks that hold at every stage; what a stage adds is in ``qpass.stages``."""

from __future__ import annotations

from torch import fx

from qpass.errors import VerifyError
from qpass.graph.program import Derived, Program


def verify(program: Program) -> Program:
    """Return ``program``; raise VerifyError naming the first value that is not well formed."""
    names: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise _bad(program, node, f"a node of kind {node.op!r}")
        if node.op == "get_attr" and node.target not in program.params:
            raise _bad(program, node, f"parameter {node.target!r} does not exist")
        if node.op == "output":
            continue
        if "val" not in node.meta and node.users:
            raise _bad(program, node, "the value has no type")
        name = node.meta.get("name")
        if name is None or name in names:
            raise _bad(program, node, f"the value name {name!r} is missing or used twice")
        names[name] = node
    _check_params(program)
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the graph of stage {program.stage} is not sorted: {error}") from error
    return program


def _check_params(program: Program) -> None:
    for name, param in program.params.items():
        for source in param.sources if isinstance(param, Derived) else ():
            if source not in program.params:
                raise VerifyError(f"parameter {name!r} is derived from {source!r}, which does not exist")


def _bad(program: Program, node: fx.Node, what: str) -> VerifyError:
    where = node.meta.get("name", node.name)
    return VerifyError(f"{what} in a program of stage {program.stage}", where=f"%{where} = {node.format_node()}")
