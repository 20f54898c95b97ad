"""Pages of which one part is written by hand, and one made of numbers, between two markers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def replace_between(page: Path, begin: str, end: str, lines: Iterable[str]) -> None:
    """Put ``lines`` between the markers ``begin`` and ``end`` of ``page``; the rest stays.

    Raises:
        ValueError: a marker that is not there once, or the two the wrong way round.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page.name} needs the lines {begin!r} and {end!r}, once each and in this order")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    page.write_text("\n".join([before + begin, "", *lines, end]) + after, encoding="utf-8")


def between(page: Path, begin: str, end: str) -> str:
    """What is between the markers, without blank lines at its ends."""
    return page.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()
