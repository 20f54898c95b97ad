"""Linears that read the same values as one: the same bits, fewer calls, and reasons where they stay apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import qpass
from qpass import pipeline
from qpass.lowering import Target
from qpass.passes.merge import merged_name

K = 160


class Heads(nn.Module):
    """Three readers of one value, a bias on one; sizes that fill no slab of 16 rows. Results are read by views."""

    def __init__(self, rows: tuple[int, ...] = (40, 24, 20), bias: tuple[bool, ...] = (False, True, False)) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, count, has in zip("qkv", rows, bias):
            setattr(self, name, nn.Linear(K, count, bias=has))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        heads = k.view(*k.shape[:-1], 2, -1).transpose(-3, -2)
        return q, heads, torch.relu(v), k.sum(-1)


def lowered(model: nn.Module, recipe: object, *, merges: bool, **options: object):
    """(trace, LOWERED) for a GPU, with or without merging."""
    found = pipeline.load_target("cuda:sm_90")
    target: Target = replace(found, kernels=tuple(replace(one, merges=merges and one.merges) for one in found.kernels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_target", lambda name: target)
        return qpass.trace(model, recipe, args=(torch.zeros(2, 3, K),), target="cuda", **options)  # type: ignore[arg-type]


def calls(trace) -> int:
    return sum("qpass_cuda" in str(node.target) for node in trace["LOWERED"].nodes())


SCHEMES = ("w8a8-int8", "w8a8-fp8", "w4a16-g32", "w4a8", "w4a16-g128",
           "e2m1:g32:sym:m2 x e4m3:token:sym", "int4:g64:sym:f16 x e4m3:token:sym")  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_output_is_that_of_the_linear_alone(scheme: str) -> None:
    x = torch.randn(4, 3, K, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    x[0, 0] = 0
    one, three = (lowered(Heads().eval(), scheme, merges=merges) for merges in (True, False))
    assert (calls(one), calls(three)) == (1, 3)
    for left, right in zip(one["LOWERED"].run(x), three["LOWERED"].run(x)):
        if "a16" in scheme:  # their meaning here is a float product; how the library sums it depends on the shape
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
        left, right = (value.contiguous().view(torch.int32) for value in (left, right))  # signs of zeros too
        assert "a16" in scheme or torch.equal(left, right)


def test_what_the_graph_and_the_plan_say() -> None:
    found = lowered(Heads().eval(), "w4a16-g32", merges=True)
    text = qpass.show(found["FUSED"])
    assert "param q+k+v.weight.codes : u8[84, 160]" in text and "param q+k+v.bias : f32[84]" in text
    assert "%k = slice(%q+k+v, -1, 40, 64) : f32[" in text
    assert "merge q+k+v: one linear of 84 outputs" in str(found.plan)
    assert [change.what for change in found["FUSED"].log if change.by == "merge"] == ["3 linears -> 1"]
    assert "def " in qpass.as_python(found["FUSED"])
    before = lowered(Heads().eval(), "w4a16-g32", merges=False)
    assert found.plan.bytes_after == before.plan.bytes_after and "merge" not in str(before.plan)


APART = [
    ({"linears": {"v": "w8a8-int8", "*": "w4a16-g32"}}, 2, "q+k+v: apart: they ask for 2 formats"),
    ({"linears": {"v": "keep", "*": "w4a16-g32"}}, 1, None),  # q and k still merge
    ("w8a8-fp8-block", 3, "q+k+v: apart: blocks of 128 rows would reach over two weights"),
]


@pytest.mark.parametrize(("recipe", "count", "reason"), APART)
def test_what_stays_apart_and_why(recipe: object, count: int, reason: str | None) -> None:
    found = lowered(Heads().eval(), recipe, merges=True)
    assert calls(found) == count and (reason is None or f"merge {reason}" in str(found.plan))


def test_blocks_that_end_where_a_weight_ends() -> None:
    one, two = (lowered(Heads((128, 128, 40)).eval(), "w8a8-fp8-block", merges=merges) for merges in (True, False))
    x = torch.randn(1, 3, K, generator=torch.Generator().manual_seed(1))
    assert (calls(one), calls(two)) == (1, 3)
    for left, right in zip(one["LOWERED"].run(x), two["LOWERED"].run(x)):
        assert torch.equal(left, right)


class Twice(nn.Module):
    """One weight read twice, with other inputs the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(K, K), nn.Linear(K, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x))) + self.b(x).sum()


def test_a_weight_that_is_read_elsewhere_is_not_kept_twice() -> None:
    found = lowered(Twice().eval(), "w8a8-int8", merges=True)
    assert calls(found) == 3
    assert "merge a+b: apart: one of the weights is read elsewhere too, and would be kept twice" in str(found.plan)


def test_a_linear_with_a_low_rank_branch_stays_apart() -> None:
    """Its kernel takes the branch along."""
    found = lowered(Heads().eval(), "int4:g32:sym:f16:r4 x e4m3:token:sym", merges=True)
    assert calls(found) == 3
    assert "apart: a low-rank branch goes with its own linear, in one kernel" in str(found.plan)


def test_the_reference_stays_one_linear_each() -> None:
    found = qpass.trace(Heads().eval(), "w8a8-int8", args=(torch.zeros(2, 3, K),), target="reference", until="FUSED")
    assert not [change for change in found["FUSED"].log if change.by == "merge"] and "merge" not in str(found.plan)


def test_names() -> None:
    assert merged_name(["a.b.q", "a.b.k"]) == "a.b.q+k"
    assert merged_name(["x", "y.z"]) == "x+y.z" and merged_name(["a.b", "a.b"]) == "a.b+b"
