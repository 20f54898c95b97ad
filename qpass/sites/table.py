"""An analysis as a table to read: repeated layers print once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from qpass.graph.table import spans, table
from qpass.sites.naming import part
from qpass.sites.site import Axis, Site

_LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")


def sites_table(sites: Sequence[Site], refused: Mapping[str, str], unknown: Mapping[str, str]) -> str:
    """Kind, freedom, ties, and who divides and multiplies; then what could not be a site, and why."""
    lines = [f"scale flow: {len(sites)} sites, {sum(site.size for site in sites)} degrees of freedom"]
    if sites:
        head = ("kind", "freedom", "in", "divide -> multiply", "channels tied", "shift")
        lines += table(head, _folded([_row(site) for site in sites]))
    for node, why in _folded([(f"%{name}", why) for name, why in refused.items()]):
        lines.append(f"no site at {node}: {why}")
    for node, op in _folded([(f"%{name}", op) for name, op in unknown.items()]):
        lines.append(f"no rule at {node}: {op}")
    return "\n".join(lines)


def _row(site: Site) -> tuple[str, ...]:
    names = [axis.param.removesuffix(".weight") for axis in site.axes]
    inside = _common(names)

    def short(text: str) -> str:
        return text.replace(f"{inside}.", "") if inside else text

    ties = [f"{short(axis.param.removesuffix('.weight'))}{part(axis)} {count}" for axis in site.axes
            if axis.role != "affine" and (count := _tied(axis, site.size)) != "1"]  # fmt: skip
    return (site.kind, str(site.size), inside or "-", short(site.name), ", ".join(dict.fromkeys(ties)) or "-",
            _shift(site))  # fmt: skip


def _common(names: list[str]) -> str:
    """The module that holds all of them; a lone name is in its parent."""
    parts = [name.split(".") for name in names]
    same = list(takewhile(lambda words: len(set(words)) == 1, zip(*parts)))
    depth = len(same) - any(len(same) == len(words) for words in parts)
    return ".".join(words[0] for words in same[:depth])


def _tied(axis: Axis, size: int) -> str:
    """How many channels share a factor."""
    counts = axis.powers.index[axis.powers.index >= 0].bincount(minlength=size)
    counts = counts[counts > 0]
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}-{high}"


def _shift(site: Site) -> str:
    if site.unshiftable:
        return "no"
    missing = len(site.missing_bias)
    return f"if {missing} op{'s' * (missing > 1)} got a bias" if missing else "yes"


def _folded(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that differ in one layer number only print once."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        number = next((match[1] for cell in row if (match := _LAYER.search(f"{cell}."))), None)
        cells = tuple(re.sub(rf"(?<=\.){number}(?=\.|$)", "*", cell) for cell in row) if number else row
        groups.setdefault(cells, []).append(int(number) if number else 0)
    return [tuple(cell.replace("*", spans(numbers)) for cell in cells) for cells, numbers in groups.items()]
