"""A mode that hands every op torch runs to a function, for whoever interprets programs in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Intercept(TorchDispatchMode):
    """Inside, ``handle(op, args, kwargs)`` makes the result of each op; it may run the op, which is not seen again."""

    def __init__(self, handle: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.handle = handle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand it over."""
        return self.handle(func, tuple(args), dict(kwargs or {}))
