"""The table of bounds, and how it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qpass.graph.program import Program
from qpass.graph.table import table
from qpass.graph.values import op_name
from qpass.ranges.site import Seen, Site


@dataclass(frozen=True)
class Line:
    """One op of one value. ``bits``: what its bounds need, sign included; ``seen.width``: what it has."""

    value: str
    site: Site
    seen: Seen

    @property
    def bits(self) -> int:
        """Bits of two's complement that hold lo and hi."""
        return max(self.seen.hi.bit_length(), (~self.seen.lo).bit_length()) + 1


_LAYER = re.compile(r"\.\d+\.")
_FIXED = ("msb",)  # compares with constants, of which one always is 2^30


def _size(line: Line) -> int:
    return max(line.seen.hi, -line.seen.lo)


@dataclass(frozen=True)
class Ranges:
    """Bounds of every op of an INTEGER program for 1 to ``context`` tokens. ``str`` gives the tightest of each value.

    Attributes:
        lines: one an op: the value of the program it belongs to, its place in the operator, lo, hi, bits and width.
        context: tokens, past and new, that the bounds hold for.
    """

    lines: tuple[Line, ...]
    context: int
    program: Program

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def tightest(self, width: int = 32) -> list[Line]:
        """Of each value, the op of that width that leaves the fewest bits, tightest first."""
        best: dict[str, Line] = {}
        for line in self.lines:
            if line.seen.width != width or line.site.function in _FIXED:
                continue
            if line.value not in best or _size(line) > _size(best[line.value]):
                best[line.value] = line
        return sorted(best.values(), key=lambda line: (-_size(line), line.value))

    def _once(self) -> list[Line]:
        """``tightest`` of operators, less what other layers have of the same; what only moves numbers says nothing."""
        first: dict[str, Line] = {}
        for line in self.tightest():
            if line.site.file:
                first.setdefault(_LAYER.sub(".*.", line.value), line)
        return list(first.values())

    def __str__(self) -> str:
        return self.text()

    def text(self, *, full: bool = False) -> str:
        """Of each operator, in the layer where it is tightest, the op that comes nearest to 32 bits, tightest first.

        full: every op of every value instead, in the order of the program.
        """
        names = {node.meta["name"]: op_name(node.target) for node in self.program.nodes()}
        head, rows = ["value", "op", "at", "lo", "hi", "bits"], []
        for line in self.lines if full else self._once():
            lo, hi, bits = str(line.seen.lo), str(line.seen.hi), f"{line.bits} of {line.seen.width}"
            rows.append([line.value, names.get(line.value, ""), str(line.site), lo, hi, bits])
        wide = [line for line in self.lines if line.seen.width == 64]
        most = max((line.bits for line in wide), default=0)
        text = "\n".join(table(head, rows))
        return f"bounds for 1 to {self.context} tokens\n{text}\nint64: {len(wide)} ops, at most {most} bits"
