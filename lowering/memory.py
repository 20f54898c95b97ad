"""Give memory that is free back to the system, so that the peak of a build is what is alive and not what once was."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

AT_ONCE = 64 * 2**20


def release() -> None:
    """Collect garbage, and return free pages to the system where the C library keeps them (glibc).

    The allocator holds on to freed blocks of up to 32 MiB, and results that are placed between them keep it from ever
    giving them back by itself.
    """
    gc.collect()
    _trim()


class Trimmer:
    """Called with the bytes of each result: trims once ``AT_ONCE`` bytes have come together."""

    def __init__(self) -> None:
        self.bytes = 0

    def add(self, amount: int) -> None:
        """Count ``amount`` bytes of results."""
        self.bytes += amount
        if self.bytes >= AT_ONCE:
            self.bytes = 0
            _trim()


def _trim() -> None:
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
