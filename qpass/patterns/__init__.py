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
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            found += [value] if isinstance(value, Rule) else _list_of_rules(value)
    return tuple(sorted(found, key=lambda rule: rule.name in _LAST))


# Parts of larger patterns: raised only after all others.
_LAST = frozenset({"relu", "gelu", "silu", "relu_squared", "quick_gelu", "gelu_tanh"})


def _list_of_rules(value: object) -> list[Rule]:
    return [item for item in value if isinstance(item, Rule)] if isinstance(value, list) else []
