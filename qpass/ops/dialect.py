"""How an op of the dialect is defined: a schema and a meaning in plain PyTorch.

The meaning is what the op computes everywhere: eagerly, on fake tensors, as the reference lowering, and as what a
compiler sees when no kernel claims the op. Registered as CompositeImplicitAutograd: export keeps the op, Inductor
decomposes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_LIBRARY = torch.library.Library("qpass", "DEF")


@dataclass(frozen=True)
class Op:
    """A dialect op: ``call`` goes into graphs, ``meaning`` is plain PyTorch."""

    name: str
    call: Any
    meaning: Callable[..., Any]
    doc: str


REGISTRY: dict[str, Op] = {}


def define(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorate an op's meaning with its schema, for example ``"rms_norm(Tensor x, ...) -> Tensor"``.

    Returns the OpOverload, so that ``ops.rms_norm(x, ...)`` is a call in a graph.
    """
    name = schema.split("(")[0]

    def wrap(meaning: Callable[..., Any]) -> Any:
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, meaning, "CompositeImplicitAutograd")
        call = getattr(torch.ops.qpass, name).default
        REGISTRY[name] = Op(name, call, meaning, meaning.__doc__ or "")
        return call

    return wrap
