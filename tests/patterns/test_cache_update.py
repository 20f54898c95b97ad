from __future__ import annotations

import torch

from qpass import ops

from .helpers import change, equal, reason

K = torch.ones(2, 3, 5, 8)


def test_change() -> None:
    assert change(lambda past, new: torch.cat((past, new), dim=-2), K, K) == """\
-%cat = cat([%x, %y], -2) : f32[2, 3, 10, 8]
+%cat = qpass.cache_update(%x, %y) : f32[2, 3, 10, 8]   # raise/cache_update
"""


def test_equal_numbers() -> None:
    equal(ops.cache_update, lambda past, new: torch.cat((past, new), dim=2), (2, 3, 5, 8), (2, 3, 1, 8))


def test_near_miss() -> None:
    made = lambda x, y: torch.cat((x * 2, y), dim=-2)  # noqa: E731
    assert reason("cache_update", made, K, K) == "mul is not an input of the program"
    wide = lambda x, y: torch.cat((x, y), dim=-1)  # noqa: E731
    assert reason("cache_update", wide, K, K) == "cat: expected the literal -2, found -1"
