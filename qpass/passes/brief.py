"""Many lines that differ in their numbers and places only, as one.

before   gptq: layers.0.mlp.up_proj.weight: loss 0.31 of round to nearest's, on 64 rows      and 41 more such lines
after    gptq: 42 places, layers.0.mlp.up_proj.weight to layers.5.self_attn.v_proj.weight: loss 0.31 to 0.92 of ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST = 8
"""Lines of one kind that are printed one by one."""
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


def brief(lines: Sequence[str], most: int = MOST) -> list[str]:
    """The lines ``method: place: what``, those of which there are more than ``most`` of one kind put together.

    The one line stands where the first of them stood; a number that is not the same in all is given by its ends.
    """
    groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for line in lines:
        by, place, what = _parts(line)
        groups.setdefault((by, _NUMBER.sub("#", what)) if place else (line,), []).append((place, what))
    found: list[str] = []
    done: set[tuple[str, ...]] = set()
    for line in lines:
        by, place, what = _parts(line)
        key = (by, _NUMBER.sub("#", what)) if place else (line,)
        if len(groups[key]) <= most or not place:
            found.append(line)
        elif key not in done:
            done.add(key)
            members = groups[key]
            ends = f"{members[0][0]} to {members[-1][0]}"
            found.append(f"{by}: {len(members)} places, {ends}: {_ranges([what for _, what in members])}")
    return found


def _parts(line: str) -> tuple[str, str, str]:
    """Method, place and text; the place is empty where there is none."""
    by, _, rest = line.partition(": ")
    place, colon, what = rest.partition(": ")
    return (by, place, what) if colon else (by, "", rest)


def _ranges(texts: Sequence[str]) -> str:
    columns = zip(*(_NUMBER.findall(text) for text in texts))
    words = iter([_range(column) for column in columns])
    return _NUMBER.sub(lambda _: next(words), texts[0])


def _range(column: Sequence[str]) -> str:
    least, most = min(column, key=float), max(column, key=float)
    return least if float(least) == float(most) else f"{least} to {most}"
