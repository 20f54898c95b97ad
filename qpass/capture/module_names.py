"""Names in a module from the sources that Dynamo writes down.

    L['self']._modules['layers']._modules['0']._parameters['w']  ->  layers.0.w
    L['self'].layers[0]                                          ->  layers.0
    L['batch']['mask']                                           ->  batch_mask
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_STEP = re.compile(r"\.?_(?:modules|parameters|buffers)\[['\"]([^'\"]+)['\"]\]|\.([\w@]+)|\[['\"]?([^'\"\]]+)['\"]?\]")
_ROOT = re.compile(r"^[LG]\[['\"](\w+)['\"]\]")


def split(source: str) -> tuple[str, str]:
    """``("self", "layers.0.w")``: the variable that a source starts at, and the dotted path from there."""
    root = _ROOT.match(source)
    steps = [next(filter(None, match.groups())) for match in _STEP.finditer(source[root.end() if root else 0 :])]
    return (root[1] if root else ""), ".".join(steps)


def clean_path(source: str) -> str | None:
    """The module path of a source that starts at ``self``; None for any other source."""
    root, path = split(source)
    return path if root == "self" or not root else None


def clean_scopes(stack: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Module paths from Dynamo's ``nn_module_stack``, less the root. A second call of a module ends in ``@1``."""
    paths = []
    for key, (source, _) in (stack or {}).items():
        path = split(source)[1]
        _, again, call = key.partition("@")
        paths.append(f"{path}@{call}" if path and again and "@" not in path else path)
    return tuple(path for path in paths if path)


def identifier(source: str) -> str:
    """A name for an input: ``ids``, ``batch_mask``; a member of ``**kwargs`` stands alone."""
    root, path = split(source)
    parts = [path] if root == "kwargs" and path else [root, path]
    return re.sub(r"\W+", "_", ".".join(part for part in parts if part)).strip("_") or "input"


def parameter_names(sources: Sequence[str]) -> list[str]:
    """The name of each parameter in its module. With several modules in play the variable's name comes first."""
    roots = {split(source)[0] for source in sources}
    names: list[str] = []
    for source in sources:
        root, path = split(source)
        name = path if len(roots) == 1 or root == "self" else f"{root}.{path}"
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names
