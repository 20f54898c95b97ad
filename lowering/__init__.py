"""Lowerings: how each op of the dialect runs on a device. Installed as ``qpass.lowering``.

A target is one folder or file here. It lists its kernels in order of preference, each with the cases it refuses and
why; whatever no kernel claims is the op's own meaning, which the target's compiler sees as ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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

WIDEST_INT8 = ((1 << 31) - 1) // (255 * 128)
"""Inputs of a linear up to which int32 holds its sums of 8-bit codes, as they are or with a zero point taken off."""


@dataclass(frozen=True)
class Case:
    """One linear that asks for a kernel: out and in features, the scheme, and the dtype of the float side.

    ``experts``: of a ``grouped_linear``, how many weights of that shape lie one after another; 0 for a linear.
    ``factor``: of a low-rank branch, V or U; empty for a linear of the model.
    """

    out_features: int
    in_features: int
    scheme: Scheme
    dtype: torch.dtype
    experts: int = 0
    factor: str = ""


@dataclass(frozen=True)
class Kernel:
    """One way to compute a quantized linear.

    Attributes:
        name: printed in plans, for example ``cpu.int8_linear``.
        rows: which path runs at how many rows, and what a reader should know of the numbers.
        refuses: a case -> None if the kernel takes it, else the reason in words; an empty one for a scheme of another
            kind, which is no news to anybody.
        prepare: (names of codes, scale, zero, outer; the program; the case) -> packed weights, by suffix.
        call: the computation. Called with the op's input tensors (for experts the offsets come last), the prepared
            weights by suffix, the bias, and the case; traced into the graph.
        parts: which of codes, scale, zero and outer ``call`` takes as they are; codes only if nothing was packed.
        merges: linears that read the same values are better as one, with their weights one above the other.
    """

    name: str
    rows: str
    refuses: Callable[[Case], str | None]
    prepare: Callable[[Mapping[str, str], Program, Case], dict[str, Derived]]
    call: Callable[..., Any]
    parts: tuple[str, ...] = ()
    merges: bool = False


@dataclass(frozen=True)
class Accumulator:
    """A number inside a kernel that its op's meaning does not have, so that the proof of the meaning does not cover it.

    Attributes:
        name: what is added up.
        most: no |value| is larger, for the shapes and the context of a node.
        bits: of its type with the sign: 32, 64, or 33 for 32 bits without a sign.
    """

    name: str
    most: int
    bits: int = 32

    @property
    def fits(self) -> bool:
        """Whether ``most`` does, as either sign."""
        return self.needed <= self.bits

    @property
    def needed(self) -> int:
        """Bits that hold ``most`` and a sign."""
        return self.most.bit_length() + 1


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
        accumulators: called with the most tokens that there can be, past and new, and the op's arguments (tensors are
            fake): what has to fit, in a kernel whose results must be exact. One that does not is a refusal.
    """

    name: str
    about: str
    refuses: Callable[..., str | None]
    call: Callable[..., Any]
    prepare: Callable[..., dict[str, tuple[str, Derived]]] | None = None
    accumulators: Callable[..., Sequence[Accumulator]] | None = None


@dataclass(frozen=True)
class Join:
    """Two operators of a target that it has as one.

    Attributes:
        producer, consumer: names under ``torch.ops``.
        op: takes the producer's arguments, then the rest of the consumer's; gives what the consumer gives.
        reads: which arguments of the consumer are the producer's results, in order; one result is no tuple.
        keeps: it gives the producer's results first, so that others may read them.
        through: an op and its literals that stands between each result and the consumer; empty for none.
    """

    producer: str
    consumer: str
    op: str
    reads: tuple[int, ...] = (0, 1)
    keeps: bool = False
    through: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Siblings:
    """Calls of one operator of a target that read the same, and the operator that makes them in one call.

    Attributes:
        one: a name under ``torch.ops``.
        op: takes the first ``shared`` arguments, and of each of the others a list; gives all results, in turn.
        shared: how many first arguments have to be the same.
    """

    one: str
    op: str
    shared: int


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
class Packed:
    """What goes with a file that a ``Packager`` wrote.

    Attributes:
        library: has the operators that the file calls; None if it calls none.
        facts: what else is to be known of it, for ``.json`` beside it.
    """

    library: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Packager:
    """How a target writes a LOWERED program into a file, and runs it from there.

    Attributes:
        save: (program, path) -> what goes with the file.
        load: (the file, what is in ``.json`` beside it) -> a function of flat tensors that gives a flat tuple.
        check: raises UnsupportedError where this machine cannot write one, before any work is done.
    """

    save: Callable[[Program, Path], Packed]
    load: Callable[[Path, Mapping[str, Any]], Callable[..., tuple[Any, ...]]]
    check: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Target:
    """A device and the kernels on it. ``build`` turns a LOWERED program into a module of flat inputs and outputs.

    ``check`` raises UnsupportedError where this machine cannot compile for it, before any work is done.
    ``providers`` are by the op's name in the dialect; an op without one, or whose provider refuses, is its meaning.
    With ``regions`` the meaning of an integer op stays one node, a ``Region``, which the target compiles by itself.
    ``joins`` are applied to what the providers call, in their order; a function changes the graph that it is given.
    ``grouped``: the kernels of linears of many experts.
    ``packager``: where a program can be written into a file that runs without qpass.
    """

    name: str
    kernels: tuple[Kernel, ...]
    build: Callable[[Program], torch.nn.Module]
    device: str = "cpu"
    providers: Mapping[str, Provider] = field(default_factory=dict)
    regions: bool = False
    joins: tuple[Join | Siblings | Callable[[torch.fx.Graph], None], ...] = ()
    check: Callable[[], object] = lambda: None
    grouped: tuple[Kernel, ...] = ()
    packager: Packager | None = None

    def pick(self, case: Case) -> tuple[Kernel, list[str]]:
        """The first kernel that takes ``case``, and why those before it did not."""
        refusals: list[str] = []
        listed = self.grouped if case.experts else self.kernels
        for kernel in listed:
            reason = kernel.refuses(case)
            if reason is None:
                if not refusals and len(listed) > 1 and kernel.name.startswith("reference."):
                    refusals.append(f"target {self.name} has no kernel for {case.scheme}")
                return kernel, refusals
            if reason:
                refusals.append(f"{kernel.name}: {reason}")
        raise UnsupportedError(f"target {self.name} has no kernel for {case.scheme}: {'; '.join(refusals)}")
