"""Lowerings: how each op of the dialect runs on a device. Installed as ``qpass.lowering``.

A target is one folder or file here. It lists its kernels in order of preference, each with the cases it refuses and
why; whatever no kernel claims is the op's own meaning, which the target's compiler sees as ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qpass.errors import UnsupportedError
from qpass.formats import Scheme
from qpass.graph.program import Derived, Program

if __name__ != "qpass.lowering":
    raise ImportError(
        f"this folder was imported as {__name__!r}, which would register every kernel twice. "
        "Fix: install the project (pip install -e .) and import qpass.lowering."
    )


@dataclass(frozen=True)
class Case:
    """One linear that asks for a kernel: out and in features, the scheme, and the dtype of the float side."""

    out_features: int
    in_features: int
    scheme: Scheme
    dtype: torch.dtype


@dataclass(frozen=True)
class Kernel:
    """One way to compute a quantized linear.

    Attributes:
        name: printed in plans, for example ``cpu.int8_linear``.
        rows: which path runs at how many rows, and what a reader should know of the numbers.
        refuses: a case -> None if the kernel takes it, else the reason in words; an empty one for a scheme of another
            kind, which is no news to anybody.
        prepare: (names of codes, scale, zero, outer; the program; the case) -> packed weights, by suffix.
        call: the computation. Called with the op's input tensors, the prepared weights by suffix, the bias, and the
            case; traced into the graph.
        parts: which of codes, scale, zero and outer ``call`` takes as they are; codes only if nothing was packed.
    """

    name: str
    rows: str
    refuses: Callable[[Case], str | None]
    prepare: Callable[[Mapping[str, str], Program, Case], dict[str, Derived]]
    call: Callable[..., Any]
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provider:
    """One way to compute an op of the dialect that is not a linear, in place of its meaning.

    Attributes:
        name: printed in plans, for example ``cpu.attention``.
        about: what a reader should know of it.
        refuses: called with the op's arguments (tensors are fake): None if it takes them, else the reason in words.
        call: the computation, with the op's arguments; traced into the graph.
        prepare: called with the op's arguments, where a parameter is (name, fake tensor); what ``call`` wants to have
            packed, by keyword: the name and the value of a parameter.
    """

    name: str
    about: str
    refuses: Callable[..., str | None]
    call: Callable[..., Any]
    prepare: Callable[..., dict[str, tuple[str, Derived]]] | None = None


@dataclass(frozen=True)
class Join:
    """Two operators of a target that it has as one.

    Attributes:
        producer, consumer: names under ``torch.ops``.
        op: takes the producer's arguments, then the rest of the consumer's; gives what the consumer gives.
        reads: which arguments of the consumer are the producer's results, in order; one result is no tuple.
        keeps: it gives the producer's results first, so that others may read them.
    """

    producer: str
    consumer: str
    op: str
    reads: tuple[int, ...] = (0, 1)
    keeps: bool = False


@dataclass(frozen=True, eq=False)
class Region:
    """The meaning of one op on values of certain types, as a graph; all nodes with that op and those types share it.

    Attributes:
        name: of the op.
        graph: placeholders are its tensors, in order; its output is a flat list.
    """

    name: str
    graph: torch.fx.Graph

    @property
    def __name__(self) -> str:
        return f"region.{self.name}"

    def __call__(self, *tensors: Any) -> Any:
        """Interpreted, op by op."""
        results = torch.fx.Interpreter(torch.nn.Module(), graph=self.graph).run(*tensors)
        return tuple(results) if isinstance(results, list | tuple) and len(results) > 1 else results[0]


@dataclass(frozen=True)
class Target:
    """A device and the kernels on it. ``build`` turns a LOWERED program into a module of flat inputs and outputs.

    ``check`` raises UnsupportedError where this machine cannot compile for it, before any work is done.
    ``providers`` are by the op's name in the dialect; an op without one, or whose provider refuses, is its meaning.
    With ``regions`` the meaning of an integer op stays one node, a ``Region``, which the target compiles by itself.
    ``joins`` are applied to what the providers call, in their order; then ``rewrite`` to the lowered graph.
    """

    name: str
    kernels: tuple[Kernel, ...]
    build: Callable[[Program], torch.nn.Module]
    device: str = "cpu"
    providers: Mapping[str, Provider] = field(default_factory=dict)
    regions: bool = False
    joins: tuple[Join, ...] = ()
    rewrite: Callable[[torch.fx.Graph], None] = lambda graph: None
    check: Callable[[], object] = lambda: None

    def pick(self, case: Case) -> tuple[Kernel, list[str]]:
        """The first kernel that takes ``case``, and why those before it did not."""
        refusals: list[str] = []
        for kernel in self.kernels:
            reason = kernel.refuses(case)
            if reason is None:
                return kernel, refusals
            if reason:
                refusals.append(f"{kernel.name}: {reason}")
        raise UnsupportedError(f"target {self.name} has no kernel for {case.scheme}: {'; '.join(refusals)}")
