"""What a run really does: least and largest number of each op, and the same run with every integer in 64 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass.capture.intercept import Intercept
from qpass.ranges.site import WIDTHS, Seen, Site, site_of

NARROW = (torch.int8, torch.int16, torch.int32)


class Recorder:
    """Runs ops as they are; ``seen`` has what came out, by site. With ``shadow``, each op runs in int64 beside it."""

    def __init__(self, shadow: bool = False) -> None:
        self.seen: dict[Site, Seen] = {}
        self.shadow = shadow
        self.wide: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, fn: Any, *args: Any) -> Any:
        with torch.no_grad(), Intercept(self.op):
            return fn(*args)

    def op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        for part in result if isinstance(result, list | tuple) else [result]:
            if isinstance(part, Tensor) and part.numel() and "empty" not in str(func):
                site = site_of(func.overloadpacket.__name__, WIDTHS[part.dtype])
                low, high = int(part.min()), int(part.max())
                old = self.seen.get(site, Seen(low, high, site.width))
                self.seen[site] = Seen(min(low, old.lo), max(high, old.hi), site.width)
        if self.shadow and isinstance(result, Tensor) and "empty" not in str(func):
            self._compare(func, args, kwargs, result)
        return result

    def _compare(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        if str(func) == "aten._int_mm.default":
            func = torch.ops.aten.mm.default
        options = {key: torch.int64 if value in NARROW else value for key, value in kwargs.items()}
        wide = func(*self._widen(args), **options)
        assert torch.equal(wide.to(torch.int64), result.to(torch.int64)), f"{func} wraps at {site_of(str(func), 0)}"
        self.wide[id(result)] = (result, wide)

    def _widen(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._widen(part) for part in value]
        if isinstance(value, Tensor):
            return (
                self.wide[id(value)][1]
                if id(value) in self.wide
                else (value.to(torch.int64) if value.dtype in NARROW else value)
            )
        return value


def contained(actual: dict[Site, Seen], proven: dict[Site, Seen]) -> int:
    """Assert that what happened is within what was proven; returns how many ops were compared."""
    for site, seen in actual.items():
        if site in proven:
            bound = proven[site]
            assert bound.lo <= seen.lo and seen.hi <= bound.hi, f"{site}: {seen} is outside of {bound}"
        else:
            moved = site.op in (
                "view",
                "_unsafe_view",
                "clone",
                "expand",
                "permute",
                "transpose",
                "t",
                "_to_copy",
                "mm",
            )
            assert moved or not site.file, f"{site} was never looked at"
    return len(actual.keys() & proven.keys())
