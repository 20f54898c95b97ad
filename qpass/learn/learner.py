"""What a method is that learns from the output of blocks. All such methods of one run share one loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from qpass.graph.program import Change
from qpass.learn.block import BlockModel
from qpass.learn.view import View
from qpass.observe.statistics import Stats
from qpass.sites.edits import Edit
from qpass.sites.site import Site


@runtime_checkable
class Learner(Protocol):
    """A method (see ``qpass.methods.method``) whose parameters are learned block by block.

    Attributes:
        name: in recipes.
        smooth: whether its sites include activations x·h(x) that become x·h(x·r).
        moves: whether it re-scales sites, which are then checked before anything is learned.
    """

    name: ClassVar[str]
    smooth: ClassVar[bool]
    moves: ClassVar[bool]

    def wanted(self, sites: Sequence[Site]) -> tuple[list[Site], list[Change]]:
        """Of all sites of the program those it may act on, and the reasons against others. Raises RecipeError."""
        ...

    def prepare(self, sites: Sequence[Site]) -> list[Edit]:
        """Edits that change nothing but what the graph has room for (biases of 0), made before the loop."""
        ...

    def reaches(self, view: View) -> bool:
        """Whether it has anything to learn in a block."""
        ...

    def attach(self, model: BlockModel, stats: Mapping[str, Stats]) -> None:
        """Say what is learned in a block. stats: of the inputs of the sites' columns, by value name."""
        ...
