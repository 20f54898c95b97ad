"""Where an op stands in its operator, what was seen there, and what cannot be proven."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

WIDTHS = {torch.bool: 1, torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64, torch.uint8: 8}


@dataclass(frozen=True)
class Site:
    """Where an op stands: the file and line of its operator, and the op. ``at`` tells ops of one line apart."""

    file: str
    line: int
    function: str
    op: str
    at: int
    width: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.op}"


@dataclass(frozen=True)
class Overflow:
    """What cannot be proven: an op, what is wrong, and its bounds."""

    site: Site
    what: str


@dataclass(frozen=True)
class Seen:
    """One op: bounds over all cases and calls, and the width it has."""

    lo: int
    hi: int
    width: int


class Wraps(Exception):
    """Raised inside the walk at the first op that cannot be proven; ``Overflow`` is its argument."""

    def __init__(self, found: Overflow) -> None:
        super().__init__(found.what)
        self.found = found


class Beyond(Wraps):
    """A look-up of rows ``lo`` to ``hi`` of a table that has ``rows``."""

    def __init__(self, site: Site, lo: int, hi: int, rows: int) -> None:
        super().__init__(Overflow(site, f"rows {lo} to {hi} of a table of {rows}"))
        self.lo, self.hi, self.rows = lo, hi, rows


_HERE = (os.sep.join(("qpass", "numerics", "integer")), os.sep.join(("qpass", "ops", "integer")))


def site_of(op: str, width: int) -> Site:
    """The innermost line of an integer operator on the stack; of the walk itself for ops between operators."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if any(part in code.co_filename for part in _HERE) and not code.co_filename.endswith("marks.py"):
            return Site(os.path.basename(code.co_filename), frame.f_lineno, code.co_name, op, frame.f_lasti, width)
        frame = frame.f_back  # type: ignore[assignment]
    return Site("", 0, "", op, 0, width)
