from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from qpass.capture.normalise import normalise
from qpass.graph.fold import fold_layers
from qpass.graph.program import Derived, Program
from qpass.graph.show import as_python, fingerprint, show
from qpass.passes.raise_ops import raise_ops
from tests.tiny import Decoder, Function, captured, export, ids, normal, raised, traced


def test_show() -> None:
    program = normalise(traced(lambda x, w: torch.relu(x * w)[..., 1:], torch.ones(2, 3), w=torch.ones(3)))
    assert show(program) == """\
program NORMAL(%x : f32[2, 3])
param w : f32[3] #97d2
%mul = mul(%x, w) : f32[2, 3]
%relu = relu(%mul) : f32[2, 3]
%slice = slice(%relu, -1, 1, end) : f32[2, 2]
return [%slice]
"""


def test_two_captures_print_the_same() -> None:
    dims = {"ids": {0: Dim("batch", min=1, max=64), 1: Dim("seq", min=2, max=64)}}
    again = export(Decoder("rms", 2), ids(3, 4), dims=dims)
    one, two = (show(raise_ops(normalise(program))) for program in (captured(), again))
    assert symbols(one) == symbols(two)


def symbols(text: str) -> str:
    """Symbols are named by the exporter; here they stand for the dims in order of appearance."""
    import re

    seen: dict[str, str] = {}
    return re.sub(r"\bs\d+\b", lambda match: seen.setdefault(match[0], f"S{len(seen)}"), text)


def test_dims_print_by_the_users_name() -> None:
    value = captured().placeholders()[0].meta["val"]
    names = {str(size.node.expr): name for size, name in zip(value.shape, ("batch", "seq"))}
    text = show(replace(raised(), dims=names))
    assert text.startswith("program RAISED(%ids : i64[batch, seq])")
    assert "%head = linear(%norm, head.weight) : f32[batch, seq, 32]" in text


def test_fingerprint() -> None:
    one = torch.arange(6.0).reshape(2, 3)
    assert fingerprint(one) == fingerprint(one.t().contiguous().t()) == "57eb"
    assert fingerprint(one) != fingerprint(one + 1)
    assert fingerprint(torch.tensor(1.0)) == fingerprint(torch.tensor([1.0]))
    assert fingerprint(one.to("meta")) == "meta"


def test_history_and_sources_of_parameters() -> None:
    program = traced(lambda x, w: x * w, torch.ones(3), w=torch.ones(3))
    derived = Derived(("base",), torch.neg, torch.empty(3, device="meta"))
    program = replace(program, params={"w": derived, "base": torch.ones(3)})
    assert "param w : f32[3] <- base\n" in show(program, fingerprints=False)
    program = replace(program, history={"w": ("smoothquant: * s", "rounded")})
    assert "param w : f32[3] <- smoothquant: * s; rounded\n" in show(program, fingerprints=False)


def test_layers_fold() -> None:
    text = show(raised("rms", 4))
    assert text.count("... layers.2-3 as layers.1") == 2
    assert "%layers.2" not in text.replace("return", "").split("... layers.2-3 as layers.1")[0]
    unfolded = show(raised("rms", 4), fold=False)
    assert "..." not in unfolded and "%layers.3.attn.q_proj = " in unfolded


def test_a_layer_that_differs_prints_in_full() -> None:
    program = raised("rms", 4)
    changed = raise_ops(program)  # a copy
    node = changed.value("layers.2.norm2")
    node.args = (*node.args[:2], 1e-3)
    text = show(changed, params=False)
    assert "qpass.rms_norm(%layers.2/add, layers.2.norm2.weight, 0.001)" in text
    assert "%layers.1.norm2 = " in text and "%layers.3.norm2 = " in text


def test_a_folded_weight_still_changes_the_text() -> None:
    program = raised("rms", 4)
    name = "layers.3.mlp.up_proj.weight"
    edited = replace(program, params={**program.params, name: program.tensor(name) * 2})
    assert show(edited) != show(program)
    assert show(edited, fingerprints=False) == show(program, fingerprints=False)


def layers(*caches: int) -> list[str]:
    return [f"%layers.{index}/cat = cat([%kv_{cache}, %layers.{index - 1}/cat])" for index, cache in enumerate(caches)]


def test_fold_says_what_advances() -> None:
    assert fold_layers(layers(0, 2, 4, 6))[-1] == "... layers.2-3 as layers.1, %kv_2 by 2"
    assert fold_layers(layers(9, 9, 9, 9))[-1] == "... layers.2-3 as layers.1"


def test_fold_does_not_hide_a_wrong_cache() -> None:
    assert fold_layers(layers(0, 2, 4, 4)) == [*layers(0, 2, 4, 4)[:2], "... layers.2 as layers.1, %kv_2 by 2",
                                               layers(0, 2, 4, 4)[3]]


def test_fold_leaves_the_return_line_alone() -> None:
    lines = [*layers(1, 1, 1, 1), "return [%layers.3/cat]"]
    assert fold_layers(lines)[-2:] == ["... layers.2-3 as layers.1", "return [%layers.3/cat]"]


def run_python(program: Program, *inputs: Tensor) -> Any:
    scope: dict[str, Any] = {}
    exec(as_python(program), scope)
    return scope["forward"]({name: program.tensor(name) for name in program.used_params()}, *inputs)


@pytest.mark.parametrize("stage", [captured, normal, raised])
def test_as_python_runs_a_model(stage: Any) -> None:
    inputs = ids(3, 6)
    assert torch.equal(run_python(stage(), inputs)[0], stage().run(inputs)[0])


def test_as_python_literals() -> None:
    def function(x: Tensor) -> Any:
        mask = torch.full((3,), -math.inf, dtype=torch.float32, device="cpu")
        y = torch.nan_to_num(x + mask, nan=1.0, neginf=-2.0).to(torch.float64, memory_format=torch.contiguous_format)
        low, high = y.chunk(2)
        return F_norm(low), high, torch.full((2,), math.nan), x[None, ..., ::2]

    def F_norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (3,), None, None)

    x = torch.randn(2, 3)
    program = traced(function, x)
    for one, two in zip(run_python(program, x), program.run(x)):
        assert one.dtype == two.dtype and torch.equal(one.nan_to_num(), two.nan_to_num())


def test_as_python_sizes() -> None:
    """Sizes computed from sizes: sym_size, operator and torch.sym_* calls."""

    def function(x: Tensor, y: Tensor) -> Any:
        most = torch.sym_max(x.shape[0], y.shape[0] * 2)
        return torch.arange(most), x.reshape(x.shape[0] * x.shape[1]), torch.zeros(y.shape[0] // 2 + 1)

    x, y = torch.ones(6, 4), torch.ones(5)
    dims = ({0: Dim("a", min=2, max=64)}, {0: Dim("b", min=2, max=64)})
    program = export(Function(function), x, y, dims=(dims,))
    for inputs in ((x, y), (torch.ones(8, 4), torch.ones(9))):
        for one, two in zip(run_python(program, *inputs), program.run(*inputs)):
            assert torch.equal(one, two)
    assert "operator." in as_python(program) and "torch.sym_max(" in as_python(program)


def test_as_python_of_inputs_with_the_name_of_a_module() -> None:
    program = traced(lambda x, y: x + y, torch.ones(2), torch.ones(2))
    for node, name in zip(program.placeholders(), ("params", "torch")):
        node.name = name
    assert torch.equal(run_python(program, torch.ones(2), torch.ones(2))[0], torch.full((2,), 2.0))
