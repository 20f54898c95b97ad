"""ATen -> dialect. One file a pattern; each file's rules are found by listing this folder in sorted order."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from qpass.graph.rule import Rule


@functools.cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order they are tried: larger patterns before those that would eat their parts."""
    found: list[Rule] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: _order(info.name)):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            found += [value] if isinstance(value, Rule) else _list_of_rules(value)
    return tuple(found)


# Files whose patterns are parts of larger ones, raised after all others. A norm with 1 + w is a norm with a vector.
_LAST = ("rms_norm_offset", "rms_norm_late", "rms_norm", "rms_norm_plain", "activation")


def _order(file: str) -> tuple[int, str]:
    return (_LAST.index(file) + 1 if file in _LAST else 0, file)


def _list_of_rules(value: object) -> list[Rule]:
    return [item for item in value if isinstance(item, Rule)] if isinstance(value, list) else []
