"""What a method is: a look at a program, its sites and perhaps data, that ends in edits. It never touches a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from qpass.formats import Scheme
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
            sets ``<weight>.codes``, ``.scale``, ``.zero`` and ``.outer``, which ``quantise`` takes as they are. One
            that only chooses scales sets those, and codes are rounded with them.
        add_bias: shifts may give a bias to an op that has none.
        schemes: weights whose linears get another scheme, by name; None keeps them in float. The kernel stays, so only
            the low-rank branch may differ, or the linear be kept.
        reasons: why a linear is kept in float, by the weight's name.
        summary: one line on what the method did, for the plan; without it, the edits and parameters are counted.
        notes: what was left out and why, and what the user should know; (by, where, what) as in a program's log.
    """

    edits: tuple[Edit, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    add_bias: bool = False
    schemes: Mapping[str, Scheme | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    notes: tuple[Change, ...] = ()


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the options a recipe may set, checked in ``__post_init__``.

    Attributes:
        name: in recipes.
        needs_data: whether ``solve`` runs the program on calibration batches.
    """

    name: ClassVar[str]

    @property
    def needs_data(self) -> bool:
        """See above; a class variable, or a property where options decide."""
        ...

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """What to do to a PLANNED program. ``data`` is None only where ``needs_data`` is False."""
        ...


@runtime_checkable
class Amends(Protocol):
    """A method that says at the time of planning what it will add to a linear's scheme, so that the plan tells it."""

    def amend(self, scheme: Scheme, shape: tuple[int, int]) -> Scheme:
        """The scheme of a linear of [N, K] that the recipe gives ``scheme``."""
        ...
