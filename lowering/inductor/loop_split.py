"""A guard around one optimization of Inductor's C++ code that drops elements: loop splitting of an uneven loop.

For an index such as ``x // 256`` in a loop over 704 elements, Inductor splits the loop into ``704 // 256`` times 256
and leaves the last 192 elements unwritten (torch 2.11 to 2.13). A short last group of a weight or an input is such a
loop. Within ``guarded`` a loop whose length the divisor does not divide is left whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch._inductor.codegen.cpp import CppScheduling
from torch.utils._sympy.functions import FloorDiv

_NAME = "try_loop_split"
_TAG = "even-loop-split"  # code that was cached without the guard is not taken


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Inside, Inductor splits even loops only. A version of torch without the optimization is left as it is."""
    split = getattr(CppScheduling, _NAME, None)
    if split is None:
        yield
        return

    def only_even(self: Any, nodes: list[Any]) -> Any:
        return split(self, nodes) if all(_even(node) for node in nodes) else nodes

    setattr(CppScheduling, _NAME, only_even)
    tag = f"{torch.compiler.config.cache_key_tag}{_TAG}"
    try:
        with torch.compiler.config.patch(cache_key_tag=tag):
            yield
    finally:
        setattr(CppScheduling, _NAME, split)


def _even(node: Any) -> bool:
    """Whether every division of a loop variable by a constant divides the loop's length."""
    (sizes, _), body, _ = node.node.get_default_sizes_body()
    lengths = dict(zip(body.iter_vars, sizes))
    for expression in body.indexing_exprs.values():
        for division in expression.find(FloorDiv) if isinstance(expression, sympy.Expr) else ():
            variable, divisor = division.args
            if variable in lengths and sympy.simplify(lengths[variable] % divisor) != 0:
                return False
    return True
