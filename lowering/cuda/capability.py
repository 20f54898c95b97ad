"""Which GPU a program is planned for, and what differs between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from qpass.errors import InputError

DEFAULT = (9, 0)
CHECKED = ((8, 0), (8, 6), (8, 9), (9, 0))
"""Compute capabilities for which our Triton kernels are compiled and checked."""


@dataclass(frozen=True)
class Capability:
    """A compute capability. ``stated``: it was asked for or assumed, not read from a device."""

    major: int
    minor: int
    stated: bool = True

    def __str__(self) -> str:
        return f"sm_{self.major}{self.minor}"

    @property
    def fp8(self) -> bool:
        """Whether the tensor cores take E4M3."""
        return (self.major, self.minor) >= (8, 9)

    @property
    def refusal(self) -> str | None:
        """Why no kernel of ours runs here, in words; None if they do."""
        if (self.major, self.minor) in CHECKED:
            return None
        known = ", ".join(f"sm_{major}{minor}" for major, minor in CHECKED)
        return f"its order of registers is checked for {known}, not for {self}"

    @property
    def warp_groups(self) -> bool:
        """Whether there are dots of warp groups."""
        return self.major == 9

    @staticmethod
    def parse(text: str) -> Capability:
        """``sm_90``, or ``90``.

        Raises:
            InputError: another spelling.
        """
        found = re.fullmatch(r"(?:sm_)?(\d+)(\d)", text)
        if found is None:
            fix = "write sm_90 or sm_80, and tuned behind a comma"
            raise InputError(f"{text!r} is not a compute capability", fix=fix)
        return Capability(int(found[1]), int(found[2]))

    @staticmethod
    def here() -> Capability:
        """The device's, or ``DEFAULT`` where there is none."""
        if torch.cuda.is_available() and torch.version.hip is None:
            return Capability(*torch.cuda.get_device_capability(), stated=False)
        return Capability(*DEFAULT)
