from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from qpass.capture.normalise import normalise
from qpass.errors import InputError
from qpass.graph.diff import diff
from qpass.graph.lockstep import lockstep, max_abs, sqnr_db
from qpass.graph.program import Derived
from qpass.passes.raise_ops import raise_ops
from tests.patterns.test_rms_norm import W, X, rms_norm
from tests.tiny import ids, normal, raised, traced


def test_text() -> None:
    before = normalise(traced(rms_norm, X, w=W))
    found = diff(before, raise_ops(before), inputs=[X])
    assert str(found) == found.text == """\
ops 6 -> 1
kinds +1 qpass.rms_norm, -1 add, -1 mean, -2 mul, -1 pow, -1 rsqrt
parameters unchanged, 32 -> 32 bytes
worst SQNR inf
output max abs error 0
--- NORMAL
+++ RAISED
@@ -1,9 +1,4 @@
-program NORMAL(%x : f32[2, 3, 8])
+program RAISED(%x : f32[2, 3, 8])
 param w : f32[8] #d2d8
-%pow = pow(%x, 2) : f32[2, 3, 8]
-%mean = mean(%pow, [-1], True) : f32[2, 3, 1]
-%add = add(%mean, 1e-06) : f32[2, 3, 1]
-%rsqrt = rsqrt(%add) : f32[2, 3, 1]
-%mul = mul(%x, %rsqrt) : f32[2, 3, 8]
-%mul_2 = mul(w, %mul) : f32[2, 3, 8]
+%mul_2 = qpass.rms_norm(%x, w, 1e-06) : f32[2, 3, 8]   # raise/rms_norm
 return [%mul_2]
"""
    assert not found.equal


def test_equal_programs() -> None:
    found = diff(raised(), raised())
    assert found.equal
    assert str(found) == f"ops 65 -> 65\nparameters unchanged, {found.summary.param_bytes[0]} -> " \
                         f"{found.summary.param_bytes[1]} bytes\n"


def test_a_weight_change_alone() -> None:
    name = "layers.1.mlp.gate_proj.weight"
    rounded = {**raised().params, name: raised().tensor(name).to(torch.bfloat16).float()}
    after = replace(raised(), params=rounded, history={name: ("rounded",)})
    found = diff(raised(), after, inputs=[ids()])
    assert found.summary.changed == (name,)
    assert found.summary.worst is not None and found.summary.worst[0].startswith("layers.1.mlp")
    assert 40 < found.summary.worst[1] < 70
    assert found.summary.output_error is not None and 0 < found.summary.output_error[0] < 0.1
    assert not found.equal
    assert "+param layers.1.mlp.gate_proj.weight : f32[24, 16] #" in found.text
    assert found.text == diff(raised(), after, inputs=[ids()]).text


def test_a_change_in_a_folded_layer_is_counted_and_seen() -> None:
    name = "layers.3.mlp.up_proj.weight"
    program = raised("rms", 4)
    found = diff(program, replace(program, params={**program.params, name: program.tensor(name) * 2}))
    assert found.summary.changed == (name,)
    assert "+... layers.2-3 as layers.1 #" in found.text


def test_parameters_come_and_go_with_their_bytes() -> None:
    one = traced(lambda x, a, b: x * a + b, torch.ones(4), a=torch.ones(4), b=torch.ones(4))
    two = traced(lambda x, a, c: x * a + c, torch.ones(4), a=torch.ones(4), c=torch.ones(4, dtype=torch.float16))
    summary = diff(one, two).summary
    assert (summary.added_params, summary.removed_params, summary.changed) == (("c",), ("b",), ())
    assert summary.param_bytes == (32, 24)


def test_a_derived_parameter_differs_by_content() -> None:
    one = traced(lambda x, w: x * w, torch.ones(4), w=torch.ones(4))
    same = Derived(("base",), torch.neg, torch.empty(4, device="meta"))
    two = replace(one, params={"w": same, "base": -torch.ones(4)})
    assert diff(one, two).summary.changed == ()
    assert diff(one, replace(two, params={"w": same, "base": torch.ones(4)})).summary.changed == ("w",)


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(InputError, match="the program takes 1 flat inputs, got 0"):
        diff(normal(), raised(), inputs=[])


def test_lockstep_meets_values_in_any_order() -> None:
    one = traced(lambda x: (torch.sin(x), torch.cos(x), torch.exp(x)), torch.ones(3))
    two = traced(lambda x: (torch.cos(x), torch.tanh(x), torch.sin(x)), torch.ones(3))
    assert [name for name, _, _ in lockstep(one, two, [torch.ones(3)])] == ["sin", "cos"]


def test_distances() -> None:
    one = torch.tensor([3.0, 4.0])
    assert sqnr_db(one, one) == math.inf
    assert sqnr_db(one, one + torch.tensor([0.0, 0.5])) == pytest.approx(20.0)
    assert sqnr_db(torch.zeros(2), one) == -math.inf
    assert sqnr_db(one, torch.ones(3)) == -math.inf and max_abs(one, torch.ones(3)) == math.inf
    assert max_abs(one, one + 0.25) == 0.25
    infinite = torch.tensor([1.0, -math.inf])
    assert sqnr_db(infinite, infinite) == math.inf and max_abs(infinite, infinite) == 0
    assert sqnr_db(infinite, infinite.nan_to_num()) == -math.inf
    assert max_abs(torch.ones(1), torch.full((1,), math.nan)) == math.inf
    assert sqnr_db(torch.tensor([3, 4]), torch.tensor([3, 4])) == math.inf
    assert max_abs(torch.ones(0), torch.ones(0)) == 0
