"""Where do two programs part? Each value that both have by name, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qpass.graph.lockstep import lockstep, max_abs, sqnr_db
from qpass.graph.program import Program


@dataclass(frozen=True)
class ValueDistance:
    """How far a value of program b is from the value of the same name in a; -inf dB if the shapes differ."""

    name: str
    shape: tuple[int, ...]
    sqnr_db: float
    max_abs: float

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"{self.sqnr_db:8.1f} dB  {self.max_abs:10.3g}  %{self.name} [{shape}]"


def compare(a: Program, b: Program, *inputs: Any) -> list[ValueDistance]:
    """Run both programs on the flat ``inputs``, in lockstep; one row a shared value, in the order of ``a``.

    Each value is freed after its last use, so the peak is what one program needs, twice.
    """
    return [
        ValueDistance(name, tuple(one.shape), sqnr_db(one, two), max_abs(one, two))
        for name, one, two in lockstep(a, b, inputs)
    ]
