"""Which GPU a program is planned for, and what differs between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from qpass.errors import InputError

DEFAULT = (9, 0)
CHECKED = ((8, 0), (8, 6), (8, 9), (9, 0))
"""Compute capabilities for which our Triton kernels are compiled and checked."""
CHECKED_AMD = ("gfx942",)
"""The same of AMD's processors: there words are unpacked by plain Triton, whatever the order of registers."""


@dataclass(frozen=True)
class Capability:
    """A compute capability, or AMD's name of one. ``stated``: it was asked for or assumed, not read from a device."""

    major: int
    minor: int
    stated: bool = True
    amd: str = ""

    def __str__(self) -> str:
        return self.amd or f"sm_{self.major}{self.minor}"

    @property
    def fp8(self) -> bool:
        """Whether the tensor cores take E4M3."""
        return self.without_fp8 is None

    @property
    def without_fp8(self) -> str | None:
        """Why no dot takes E4M3, in words; None if one does."""
        if self.amd:
            return f"{self}'s FP8 is E4M3FNUZ, whose bytes mean other values than E4M3's"
        return None if (self.major, self.minor) >= (8, 9) else f"{self} has no FP8 dot: that begins with sm_89"

    @property
    def refusal(self) -> str | None:
        """Why no kernel of ours runs here, in words; None if they do."""
        if self.amd:
            checked = f"it is compiled and checked for {', '.join(CHECKED_AMD)}, not for {self}"
            return None if self.amd in CHECKED_AMD else checked
        if (self.major, self.minor) in CHECKED:
            return None
        known = ", ".join(f"sm_{major}{minor}" for major, minor in CHECKED)
        return f"its order of registers is checked for {known}, not for {self}"

    @property
    def neighbors(self) -> int:
        """KW of a bfloat16 dot: how many elements along K are neighbors in a register (``triton.layout``)."""
        return 2 if self.major == 9 and not self.amd else 4

    @staticmethod
    def parse(text: str) -> Capability:
        """``sm_90``, or ``90``, or ``gfx942``.

        Raises:
            InputError: another spelling.
        """
        if re.fullmatch(r"gfx[0-9a-f]{3,4}", text):
            return Capability(0, 0, amd=text)
        found = re.fullmatch(r"(?:sm_)?(\d+)(\d)", text)
        if found is None:
            raise InputError(f"{text!r} is not a compute capability", fix="write sm_90, sm_80 or gfx942")
        return Capability(int(found[1]), int(found[2]))

    @staticmethod
    def here() -> Capability:
        """The device's, or ``DEFAULT`` where there is none."""
        if torch.cuda.is_available() and torch.version.hip is None:
            return Capability(*torch.cuda.get_device_capability(), stated=False)
        if torch.cuda.is_available():
            name = torch.cuda.get_device_properties(0).gcnArchName.partition(":")[0]
            return Capability(0, 0, stated=False, amd=name)
        return Capability(*DEFAULT)
