"""Value names: the one name of a value in recipes, prints, diffs, statistics and errors.

A module's single result is named after the module, so that rewriting what is inside a module changes no name outside
of it. Every other value is ``scope/op``, numbered inside its scope only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx


def scopes(node: fx.Node) -> tuple[str, ...]:
    """The module paths that a node was made in, outermost first. A second call of a module ends in ``@1``."""
    found: tuple[str, ...] = node.meta.get("scopes", ())
    return found


# What torch.export writes where a node belongs to no module.
_NO_MODULE = ("_empty_nn_module_stack_from_metadata_hook",)


def clean_scopes(stack: Mapping[str, Any] | None, prefix: str) -> tuple[str, ...]:
    """Module paths from an ``nn_module_stack``, less the capture wrapper's prefix and the root."""
    paths = (str(entry[0]).removeprefix(prefix) for key, entry in (stack or {}).items() if key not in _NO_MODULE)
    return tuple(path for path in paths if path and path + "." != prefix)


def op_name(target: Any) -> str:
    """The short printed name of a call target: ``linear``, ``qpass.rms_norm``."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    namespace, name = schema.name.split("::")
    return str(name) if namespace == "aten" else f"{namespace}.{name}"


def ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found, pending = set(nodes), list(nodes)
    while pending:
        for arg in pending.pop().all_input_nodes:
            if arg not in found:
                found.add(arg)
                pending.append(arg)
    return found


def assign_names(graph: fx.Graph) -> None:
    """Give every node without one a unique ``meta['name']``. Names that exist stay as they are."""
    singles = _single_results(graph)
    taken = {node.meta["name"] for node in graph.nodes if "name" in node.meta}
    for node in graph.nodes:
        if "name" not in node.meta:
            node.meta["name"] = _unique(_candidates(node, singles), taken)
            taken.add(node.meta["name"])


def _candidates(node: fx.Node, singles: Mapping[str, fx.Node]) -> Iterable[str]:
    if node.op in ("placeholder", "get_attr", "output"):
        yield str(node.target)
    for path in reversed(scopes(node)):
        if singles.get(path) is node:
            yield path
    scope = scopes(node)[-1] if scopes(node) else ""
    base = op_name(node.target).split(".")[-1].strip("_")
    yield f"{scope}/{base}" if scope else base


def _unique(candidates: Iterable[str], taken: set[str]) -> str:
    name = ""
    for name in candidates:
        if name not in taken:
            return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _single_results(graph: fx.Graph) -> dict[str, fx.Node]:
    """Module path -> the one node of that module which is used outside of it."""
    results: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        outside: set[str] = set()
        for user in node.users:
            outside |= set(scopes(node)) - set(scopes(user))
        for path in outside:
            results[path].append(node)
    return {path: nodes[0] for path, nodes in results.items() if len(nodes) == 1}
