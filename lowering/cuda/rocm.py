"""Target ``rocm``: the target ``cuda`` for AMD's processors, gfx942 where none is there. torch calls them cuda too."""

from __future__ import annotations

import torch

from qpass.lowering import Target
from qpass.lowering.cuda import target


def configured(option: str = "", mode: str | None = None) -> Target:
    """As ``qpass.lowering.cuda.target.configured``; without ``option`` the device's, or gfx942."""
    here = torch.version.hip is not None and torch.cuda.is_available()
    return target.configured(option or ("" if here else "gfx942"), mode)
