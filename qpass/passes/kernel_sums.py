"""What the kernels of a target add up in an INTEGER program, beside the meanings that ``qpass.ranges`` looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qpass.graph.program import Program
from qpass.graph.table import table
from qpass.graph.values import op_name
from qpass.lowering import Accumulator, Target
from qpass.passes.providers import accumulators, context_of, provider_refuses


@dataclass(frozen=True)
class KernelSum:
    """One number of one kernel, at the value where it can be largest."""

    value: str
    kernel: str
    sum: Accumulator


@dataclass(frozen=True)
class KernelSums:
    """Bounds of all numbers of the kernels that compute a program. ``str`` gives each once, at its largest."""

    target: str
    lines: tuple[KernelSum, ...]

    def __iter__(self) -> Iterator[KernelSum]:
        return iter(self.lines)

    def __str__(self) -> str:
        largest: dict[tuple[str, str], KernelSum] = {}
        for line in self.lines:
            key = line.kernel, line.sum.name
            if key not in largest or line.sum.most > largest[key].sum.most:
                largest[key] = line
        rows = [(line.kernel, line.sum.name, line.value, str(line.sum.most), f"{line.sum.needed} of {line.sum.bits}")
                for line in largest.values()]  # fmt: skip
        if not rows:
            return f"target {self.target}: no kernel has sums of its own"
        head = ("kernel", "sum", "largest in", "at most", "bits")
        return "\n".join([f"sums of the kernels of target {self.target}", *table(head, rows)])


def kernel_sums(program: Program, target: Target) -> KernelSums:
    """The numbers that have to fit in each kernel that takes a node of an INTEGER program.

    All of them do: a kernel that one does not fit has refused the node, as the plan says.
    """
    found, context = [], context_of(program)
    for node in program.nodes():
        provider = target.providers.get(op_name(node.target).removeprefix("qpass."))
        if provider is None or provider.accumulators is None or provider_refuses(provider, node, context) is not None:
            continue
        name = str(node.meta["name"])
        found += [KernelSum(name, provider.name, part) for part in accumulators(provider, node, context)]
    return KernelSums(target.name, tuple(found))
