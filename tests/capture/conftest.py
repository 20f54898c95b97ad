"""One capture of each family for the whole session: it is most of the time of these tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .models import CONFIGS, causal_lm, float_copy


@pytest.fixture(scope="session")
def captured() -> Any:
    """captured(family) -> (float model, rebuilt module on the float graph, Captured)."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            model = causal_lm(family)
            made[family] = (model, *float_copy(model))
        return made[family]

    assert set(CONFIGS) >= {"llama"}
    return get


@pytest.fixture(autouse=True)
def _no_grad_and_seed() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield
