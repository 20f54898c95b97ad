"""Makes ``docs/integer-accuracy.md`` from ``docs/integer-accuracy.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RAW = DOCS / "integer-accuracy.md", DOCS / "integer-accuracy.json"


def write(kept: dict[str, Any]) -> None:
    """Remake the page."""
    PAGE.write_text("# What integer-only costs\n")
