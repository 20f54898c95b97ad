"""What a method is: a look at a program, its sites and perhaps data, that ends in edits. It never touches a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from qpass.graph.program import Change, Param, Program
from qpass.sites.analysis import Analysis
from qpass.sites.edits import Edit

Data = Callable[[], Any]
"""Gives the calibration batches, from the first one on, each time it is called."""


@dataclass(frozen=True)
class Solution:
    """What a method asks for.

    Args:
        edits: exact re-scalings and shifts, in order; each is checked on the graph and refused if it is not exact.
        params: parameters to set after the edits, by name. Not exact, and not checked. A method that chooses codes
            sets ``<weight>.codes``, ``<weight>.scale`` and ``<weight>.zero``, which ``quantise`` takes as they are.
        add_bias: shifts may give a bias to an op that has none.
        notes: what was left out and why, and what the user should know; (by, where, what) as in a program's log.
    """

    edits: tuple[Edit, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    add_bias: bool = False
    notes: tuple[Change, ...] = ()


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the options a recipe may set, checked in ``__post_init__``.

    Attributes:
        name: in recipes.
        needs_data: whether ``solve`` runs the program on calibration batches.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool]

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """What to do to a PLANNED program. ``data`` is None only where ``needs_data`` is False."""
        ...
