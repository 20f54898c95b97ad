"""What scale flow says about a whole program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qpass.sites.site import Site
from qpass.sites.table import sites_table


@dataclass(frozen=True)
class Analysis:
    """What scale flow found in a program.

    Args:
        sites: in graph order.
        refused: value name of an op that meets an activation no site re-scales -> why, in words.
        unknown: value name of an op without a rule -> the op and its source line.
    """

    sites: tuple[Site, ...]
    refused: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def freedom(self) -> int:
        """Dimension of the null space: independent factors in all sites together."""
        return sum(site.size for site in self.sites)

    def __str__(self) -> str:
        return sites_table(self.sites, self.refused, self.unknown)

    def pick(self, wanted: Callable[[Site], bool]) -> tuple[Site, ...]:
        """The sites for which ``wanted`` is true."""
        return tuple(site for site in self.sites if wanted(site))
