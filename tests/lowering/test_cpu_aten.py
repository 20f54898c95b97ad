"""ATen's own calls, where our C++ operators cannot run: right over ragged shapes, or refused with the shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qpass
from qpass.formats import Scheme
from qpass.lowering import WIDEST_INT8, Case
from qpass.lowering.cpu import aten, kernels, linears

CALL = {"w8a8-int8": "aten._int_mm", "w8a16": "aten._weight_int8pack_mm",
        "int4:g32:asym:bf16": "aten._weight_int4pack_mm_for_cpu"}  # fmt: skip


@pytest.mark.parametrize("inputs", [33, 64, 72])
@pytest.mark.parametrize("scheme", CALL)
def test_right_or_refused(scheme: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``_weight_int8pack_mm`` reads whole vectors, past the end of a weight whose rows do not fill them: it crashed."""
    monkeypatch.setattr(kernels, "available", lambda: "told so by a test")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 48)).eval()
    x = torch.randn(5, inputs)
    lowered, reference = (qpass.trace(model, scheme, (x,), target=target) for target in ("cpu", "reference"))
    found, want = (trace["LOWERED"].run(x)[0] for trace in (lowered, reference))
    assert (found - want).norm() < want.norm() * 2.0**-7
    fits = {"w8a8-int8": True, "w8a16": inputs % 16 == 0}.get(scheme, inputs % 32 == 0)
    plan = str(lowered.plan)
    assert (CALL[scheme] in plan) if fits else ("multiples of" in plan), plan


def test_too_many_inputs_for_int32() -> None:
    """255 · 128 · K: the call that takes over where our own refuses would wrap just as well."""
    for kernel in (linears.INT8, aten.ATEN_INT8):
        wide = Case(8, WIDEST_INT8 + 1, Scheme.parse("w8a8-int8"), torch.float32)
        assert kernel.refuses(wide) == "65794 inputs could overflow int32"
    assert aten.ATEN_INT8.refuses(Case(8, WIDEST_INT8, Scheme.parse("w8a8-int8"), torch.float32)) is None
