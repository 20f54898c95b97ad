"""Run a graph in another floating-point dtype than it was captured in: its casts, factories and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WideMeaning(TorchFunctionMode):
    """Casts to a floating-point dtype, inside of an op's meaning, go to ``dtype`` instead."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*retyped(args, self.dtype), **retyped(kwargs or {}, self.dtype))


def retyped(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with every floating-point dtype in it replaced."""
    if isinstance(value, torch.dtype):
        return dtype if value.is_floating_point else value
    if isinstance(value, dict):
        return {key: retyped(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(retyped(item, dtype) for item in value)
    return value


def widened(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with every floating-point tensor in it in ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return type(value)(widened(item, dtype) for item in value) if type(value) in (tuple, list) else value
