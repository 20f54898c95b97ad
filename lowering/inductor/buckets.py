"""A LOWERED program for a GPU -> one Inductor artifact for each bucket of rows, compiled when it is first called for.

A decode step and a prefill want other kernels; which of them a graph with a symbolic number of rows gets is fixed when
it is compiled (``qpass.lowering.cuda.tiles``). The artifacts share the weights.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._inductor.virtualized import V

from qpass.graph.program import Program, materialise
from qpass.lowering.cuda import tiles
from qpass.lowering.inductor.choices import RowsInRegisters
from qpass.lowering.inductor.compile import compile_program
from qpass.lowering.inductor.modes import options, static_inputs, tunes


class Bucketed(torch.nn.Module):
    """Flat tensors in, flat tuple out; weights are buffers named as parameters. ``mode``: see ``modes``."""

    def __init__(self, program: Program, mode: str | None = None) -> None:
        super().__init__()
        self._program, self._rows, self._mode = program, rows_of(program), mode
        self._artifacts: dict[int | None, Any] = {}
        self._attributes: list[str] = []
        for name, tensor in materialise(program).items():
            attribute = name.replace(".", "__")
            self.register_buffer(attribute, tensor)
            self._attributes.append(attribute)

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the artifact for as many rows as the inputs have."""
        dense = [value.contiguous() if isinstance(value, Tensor) else value for value in inputs]
        bucket = tiles.bucket_of(self._rows(dense))
        if bucket not in self._artifacts:
            self._artifacts[bucket] = compile_bucket(self._program, bucket, self._mode)
        weights = [self._buffers[attribute] for attribute in self._attributes]
        with torch.no_grad():
            return tuple(self._artifacts[bucket](*weights, *dense))


def compile_bucket(program: Program, bucket: int | None, mode: str | None = None) -> Any:
    """The artifact of ``program`` for one bucket of rows. Sources of kernels are part of what it is cached by.

    In a mode that tunes, tiles of our kernels are timed at the first run; Inductor keeps the best in its cache, by the
    source of the kernel, the candidates and the sizes.
    """
    tag = f"{torch.compiler.config.cache_key_tag}{bucket}{mode}{sources()}"
    with (
        torch.compiler.config.patch(cache_key_tag=tag), tiles.compiling_for(bucket, tuned=tunes(mode)), our_choices(),
        static_inputs(len(program.used_params())),
    ):  # fmt: skip
        return compile_program(program, options(mode, bucket, fixed=_fixed(program)))


def _fixed(program: Program) -> bool:
    values = [node.meta["val"] for node in program.placeholders()]
    sizes = [size for value in values for size in (value.shape if isinstance(value, Tensor) else [value])]
    return not any(isinstance(size, torch.SymInt) for size in sizes)


def our_choices() -> Any:
    """Inside, Inductor chooses as ``choices`` says."""
    return V.set_choices_handler(RowsInRegisters())


def sources() -> str:
    """A hash of the kernels' and the operators' files."""
    found = hashlib.sha256()
    for package in ("qpass.lowering.triton", "qpass.lowering.cuda", "qpass.lowering.inductor"):
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Rows:
    """The most rows that a linear of ours has in a call, from the call's flat inputs.

    Attributes:
        fixed: of the linears whose number is known; 0 if there is none.
        where: a size's symbol -> (input, dimension) that has it.
        counts: in those symbols, of the others.
        unknown: a number depends on data: any is possible.
    """

    fixed: int
    where: dict[sympy.Symbol, tuple[int, int]]
    counts: tuple[sympy.Expr, ...]
    unknown: bool

    def __call__(self, inputs: list[Any]) -> int:
        """Of one call."""
        sizes = [inputs[position].shape[dim] for position, dim in self.where.values()]
        found = max((int(function(*sizes)) for function in self._functions), default=0)
        return max(found, self.fixed, tiles.BUCKETS[-1] + 1 if self.unknown else 0)

    @functools.cached_property
    def _functions(self) -> list[Callable[..., Any]]:
        return [sympy.lambdify(list(self.where), count) for count in self.counts]

    def buckets(self) -> tuple[int | None, ...]:
        """Those that a call may be in."""
        if self.unknown or not self.counts:
            return (tiles.bucket_of(tiles.BUCKETS[-1] + 1 if self.unknown else self.fixed),)
        return (*(most for most in tiles.BUCKETS if most >= self.fixed), None)


def rows_of(program: Program) -> Rows:
    """How many rows the linears of ours in ``program`` have."""
    counts = {_rows(node.meta["val"]) for node in program.nodes() if _is_linear(node)}
    fixed = max((count for count in counts if isinstance(count, int)), default=0)
    where: dict[sympy.Symbol, tuple[int, int]] = {}
    for position, node in enumerate(program.placeholders()):
        value = node.meta["val"]
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                where.setdefault(size.node.expr, (position, dim))
    free = [count for count in counts if not isinstance(count, int)]
    known = tuple(count for count in free if count.free_symbols <= where.keys())
    return Rows(fixed, where, known, unknown=len(known) < len(free))


def _is_linear(node: torch.fx.Node) -> bool:
    name = str(node.target)
    return "qpass_cuda" in name and "_linear" in name


def _rows(value: Tensor | tuple[Tensor, ...]) -> Any:
    """The product of all sizes but the last, of the first result: an int or a sympy expression."""
    count: Any = 1
    value = value[0] if isinstance(value, tuple) else value
    for size in value.shape[:-1]:
        count = count * (size.node.expr if isinstance(size, torch.SymInt) else size)
    return int(count) if isinstance(count, int) or count.is_Integer else count
