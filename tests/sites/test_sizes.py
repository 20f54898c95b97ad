"""A size that may change is no fact: what is zero, or in place, at one size need not be at another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qpass import pipeline
from qpass.capture.normalise import normalise
from qpass.passes.raise_ops import raise_ops
from qpass.sites import analyse
from tests.sites.oracle import check_exact, loud
from tests.sites.test_rules import IDS, Case, K, N, T


def batch_mask(x: Tensor, least: int) -> Tensor:
    return (torch.arange(x.shape[0]) >= least).to(x.dtype)[:, None, None]


CASES: dict[str, tuple[int, Callable[..., Any]]] = {
    "a factor that is 0 at batch 2": (N, lambda m, x: m.out(m.a(x) * (x.shape[0] - 2) + m.b(x))),
    "an offset": (N, lambda m, x: m.out((m.w + x.shape[0]) * m.a(x))),
    "an index": (1, lambda m, x: m.out(m.a(x)[:, :, (torch.arange(x.shape[0]) % N)[:1].expand(N)])),
    "a mask by row": (N, lambda m, x: m.out(m.a(x) * batch_mask(x, 4) + m.b(x))),
    "a tensor of sizes": (N, lambda m, x: m.out(m.a(x) * torch.full((N,), x.shape[0] - 2.0) + m.b(x))),
    "a bound": (0, lambda m, x: m.out(m.a(x).clamp(min=x.shape[0] - 2))),
    "a filler": (0, lambda m, x: m.out(m.a(x).masked_fill(x[..., :1] > 0, x.shape[0] - 2))),
    "a shift in place": (1, lambda m, x: m.out(m.a(x).roll(x.shape[0], -1))),
}


@pytest.mark.parametrize("name", CASES)
def test_exact_at_other_sizes(name: str) -> None:
    freedom, run = CASES[name]
    case = loud(Case(lambda m, x, ids: run(m, x)))
    x = torch.randn(3, T, K, generator=torch.Generator().manual_seed(0))
    program = normalise(pipeline.capture(case, (x, IDS)))
    found = analyse(raise_ops(program))
    assert found.freedom == freedom
    for batch in (2, 3, 7):
        check_exact(program, found, [torch.randn(batch, T, K), IDS])
