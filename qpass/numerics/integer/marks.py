"""Marks for whoever proves what operators can do (qpass.ranges): nothing at run time, and no assumption.

``helper`` names a function whose result may depend on its arguments alone; ``case`` names a small number that the rest
of the helper depends on so much (the position of the highest bit of a row) that a proof takes its values one by one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Watcher(Protocol):
    """What is told of helpers and cases."""

    def helper(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stand in for ``fn(*args, **kwargs)``."""

    def case(self, value: Tensor) -> Tensor:
        """Stand in for ``value``."""


_watchers: list[Watcher] = []


def helper(fn: Callable[P, R]) -> Callable[P, R]:
    """Mark a function: results depend on arguments alone, row by row."""

    @functools.wraps(fn)
    def marked(*args: P.args, **kwargs: P.kwargs) -> R:
        return _watchers[-1].helper(fn, args, dict(kwargs)) if _watchers else fn(*args, **kwargs)

    return marked


def case(value: Tensor) -> Tensor:
    """Mark a small number, one a row or one an element."""
    return _watchers[-1].case(value) if _watchers else value


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of every helper and case inside the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
