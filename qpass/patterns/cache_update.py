"""The key/value cache: new keys or values appended to those that came in.

before   %cat = cat([%past_key, %k], -2)
after    %cat = qpass.cache_update(%past_key, %k)
Exact. Only where the first operand is an input of the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.capture.pattern import rule


@rule("cat", past=(2, 3, 5, 7), new=(2, 3, 1, 7))
def cache_update(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat((past, new), dim=-2)


def _is_state(bound: Mapping[str, Any]) -> str | None:
    past = bound["past"]
    return None if past.op == "placeholder" else f"{past.meta['name']} is not an input of the program"


@cache_update.becomes_where(_is_state)
def rule_cache_update(past: Any, new: Any) -> Any:
    return ops.cache_update(past, new)
