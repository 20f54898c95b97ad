"""Stacked weights are found from the dataflow, however it is spelled; near misses are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qpass import pipeline
from qpass.graph.values import op_name
from qpass.pipeline import load_target
from qpass.recipe import Recipe

E, N, K, S = 3, 32, 40, 7


class Stack(nn.Module):
    """w [E, N, K], or [E, K, N]; ``how`` multiplies x with it."""

    def __init__(self, how, turned: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        w = torch.randn(E, K, N) if turned else torch.randn(E, N, K)
        self.w = nn.Parameter(w.bfloat16() if how in (in_order, counted, given) else w)
        self.register_buffer("ends", torch.tensor([2, 2, 6]).int())
        self.how, self.turned = how, turned

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.how(self, x, ids)


def column(m, x, ids):
    return torch.bmm(m.w[ids], x.unsqueeze(-1)).squeeze(-1)


def row(m, x, ids):
    return torch.matmul(x.unsqueeze(1), m.w[ids]).squeeze(1)


def in_order(m, x, ids):
    weight = m.w if m.turned else m.w.mT
    return torch.nn.functional.grouped_mm(x.bfloat16(), weight, offs=m.ends).float()


def counted(m, x, ids, chosen=None):
    """Rows counted by a histogram, as transformers does."""
    chosen = x[:, :E].topk(1, -1)[1].reshape(-1) if chosen is None else chosen
    values, order = chosen.sort()
    ends = torch.histc(values.float(), E, 0, E - 1).cumsum(0, dtype=torch.int32)
    rows = x[order].bfloat16()
    return torch.nn.functional.grouped_mm(rows, m.w.mT, offs=ends).float()


def given(m, x, ids):
    return counted(m, x, ids, ids)


def twice(m, x, ids):
    return column(m, x, ids) + column(m, 2 * x, ids.flip(0))


FOUND = {"column": (column, False, 1), "row": (row, True, 1), "twice": (twice, False, 2),
         "in order": (in_order, False, 1), "in order, turned": (in_order, True, 1)}  # fmt: skip
MISSED = {
    "a weight that is computed": (lambda m, x, ids: torch.bmm((m.w * 2)[ids], x.unsqueeze(-1)), False),
    "two rows each": (lambda m, x, ids: torch.bmm(m.w[ids], torch.stack([x, x], -1)), False),
    "turned, and read elsewhere": (lambda m, x, ids: row(m, x, ids) + m.w.sum(), True),
    "ids of two dimensions": (lambda m, x, ids: torch.matmul(m.w[ids[:, None]], x[:, None, :, None]), False),
    "all experts at once": (lambda m, x, ids: torch.bmm(x.expand(E, -1, -1), m.w.transpose(1, 2)), False),
    "no weight": (lambda m, x, ids: torch.bmm(x[ids][:, None], x[:, :, None]) + m.w.sum(), False),
}


def trace(how, turned: bool, recipe: str = "w8a8-int8", until: str = "LOWERED"):
    args = torch.randn(S, K, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0, 0, 2, 0, 2, 2])
    rows = Dim("rows", min=2, max=64)
    program = pipeline.capture(Stack(how, turned).eval(), args, dynamic_shapes=({0: rows}, {0: rows}))
    return pipeline.run(program, Recipe.parse(recipe), load_target("reference"), until=until), program, args


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    how, turned, count = FOUND[name]
    found, program, args = trace(how, turned)
    want = program.run(*args)[0]
    calls = [op_name(node.target) for node in found["RAISED"].nodes()]
    assert calls.count("qpass.grouped_linear") == count and "bmm" not in calls and "matmul" not in calls
    used = slice(6 if how is in_order else S)  # the rows behind the last expert's have no value in ATen, and 0 here
    close = {"rtol": 2**-7, "atol": 2**-7} if how is in_order else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found["RAISED"].run(*args)[0][used], want[used], **close)
    quantised = found["QUANTISED"].run(*args)[0]
    assert 0 < (quantised[used] - want[used]).norm() / want[used].norm() < 0.02 and not quantised[used.stop :].any()
    assert torch.equal(found["LOWERED"].run(*args)[0], quantised)
    assert [(choice.sizes, choice.experts) for _, choice in found.plan.choices] == [((E, N, K), E)] * count
    size = 2 if how is in_order else 4
    saved = found.plan.bytes_before - found.plan.bytes_after
    assert saved == size * E * N * K - E * (N * K + 4 * N)


@pytest.mark.parametrize(("how", "known"), [(counted, True), (given, False)])
def test_where_experts_end_is_looked_up(how, known: bool) -> None:
    """But where ids could be below 0, which a histogram leaves out."""
    found, program, args = trace(how, False, until="RAISED")
    calls = [op_name(node.target) for node in found["RAISED"].nodes()]
    assert ("searchsorted" in calls) is known and ("histc" in calls) is not known and "qpass.grouped_linear" in calls
    torch.testing.assert_close(found["RAISED"].run(*args)[0], program.run(*args)[0], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("name", MISSED)
def test_near_misses(name: str) -> None:
    raised = trace(*MISSED[name], until="RAISED")[0]["RAISED"]
    assert "qpass.grouped_linear" not in [op_name(node.target) for node in raised.nodes()]


REFUSED = {
    "int8:tensor:sym x int8:token:asym": "int8:tensor:sym has one scale for all experts",
    "w8a8-int8-static": "calibration does not see the inputs of experts",
    "int8:b24x8:sym": "a block of 24 rows would be of two experts, which have 32 rows each",
    "int8:channel:sym:r2": "has a low-rank branch",
}


@pytest.mark.parametrize("scheme", REFUSED)
def test_what_experts_cannot_have_is_said(scheme: str) -> None:
    plan = trace(column, False, scheme, "PLANNED")[0].plan
    assert REFUSED[scheme] in str(plan) and plan.bytes_after == plan.bytes_before


def test_gradients_reach_rows_and_weights() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(6, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    ends = torch.tensor([2, 2, 5]).int()
    with torch.enable_grad():
        x, w = x.requires_grad_(), w.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, w: torch.ops.qpass.grouped_linear(x, w, ends), (x, w))


def test_that_methods_leave_experts_is_said() -> None:
    plan = trace(column, False, {"methods": ["lwc"], "linears": {"*": "int4:g8:asym"}}, "PLANNED")[0].plan
    assert "note: w: methods do not look at experts: rounded to nearest" in str(plan)
