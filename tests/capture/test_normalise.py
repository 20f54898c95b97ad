"""Every step of normalisation: what it spells how, and that no bit changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from qpass.capture.normalise import normalise
from qpass.graph.program import Program
from qpass.graph.show import show
from qpass.graph.verify import verify
from tests.tiny import Function, captured, export, ids, normal, traced

aten = torch.ops.aten
X = torch.ones(2, 3, 8)


def body(program: Program) -> list[str]:
    """The calls, without types."""
    return [line.split(" : ")[0] for line in show(program, params=False).splitlines()[1:-1]]


def normalised(function: Callable[..., Any], *inputs: Tensor, **options: Any) -> list[str]:
    before = traced(function, *inputs, **options)
    after = verify(normalise(before))
    values = [torch.randn(value.shape).to(value.dtype) if value.is_floating_point() else value for value in inputs]
    for one, two in zip(before.run(*values), after.run(*values)):
        assert one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)
    return body(after)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sin(x.to(torch.float32)),
        lambda x: torch.sin(x.clone()),
        lambda x: torch.sin(x.detach()),
        lambda x: torch.sin(x.contiguous()),
        lambda x: torch.sin(aten.alias(x)),
        lambda x: torch.sin(x * 1),
        lambda x: torch.sin(x * 1.0),
        lambda x: torch.sin(F.dropout(x, 0.5, training=False)),
        lambda x: torch.sin(x.expand(2, 3, 8)),
        lambda x: torch.sin(x.reshape(2, 3, 8)),
        lambda x: torch.sin(x[:]),
        lambda x: torch.sin(x[..., :]),
        lambda x: torch.sin(x.type_as(x)),
        lambda x: torch.sin(torch.cat((x,))),
        lambda x: torch.sin(torch.cat((torch.empty(0), x))),
    ],
)
def test_no_ops_go(function: Callable[[Tensor], Tensor]) -> None:
    assert [line for line in normalised(function, X) if "empty" not in line] == ["%sin = sin(%x)"]


@pytest.mark.parametrize(
    ("function", "spelled"),
    [
        (lambda x: x.to(torch.bfloat16), "_to_copy(%x, dtype=bf16)"),
        (lambda x: x.type_as(torch.ones(1, dtype=torch.bfloat16)), "_to_copy(%x, dtype=bf16)"),
        (lambda x: x.bfloat16(), "_to_copy(%x, dtype=bf16)"),
        (lambda x: x.view(6, 8), "reshape(%x, [6, 8])"),
        (lambda x: x.reshape(-1, 8), "reshape(%x, [6, 8])"),
        (lambda x: x.flatten(0, 1), "reshape(%x, [6, 8])"),
        (lambda x: x.unsqueeze(3), "unsqueeze(%x, -1)"),
        (lambda x: x.transpose(2, 1), "transpose(%x, -2, -1)"),
        (lambda x: x.mean(2), "mean(%x, [-1])"),
        (lambda x: torch.cat((x, x), 2), "cat([%x, %x], -1)"),
        (lambda x: torch.cat((x, x)), "cat([%x, %x], -3)"),
        (lambda x: torch.cat((x, x), -3), "cat([%x, %x], -3)"),
        (lambda x: torch.stack((x, x)), "stack([%x, %x], -4)"),
        (lambda x: torch.stack((x, x), 3), "stack([%x, %x], -1)"),
        (lambda x: F.softmax(x, 2), "softmax(%x, -1)"),
        (lambda x: F.softmax(x, 2, dtype=torch.float32), "softmax(%x, -1)"),
        (lambda x: F.softmax(x, -1, dtype=torch.float64), "softmax(%x, -1, f64)"),
        (lambda x: x.square(), "pow(%x, 2)"),
        (lambda x: x[..., 2:], "slice(%x, -1, 2, end)"),
        (lambda x: aten.layer_norm(x, [8]), "layer_norm(%x, [8], None, None, 1e-05)"),
        (lambda x: aten.layer_norm(x, [8], None, None, 1e-5, False), "layer_norm(%x, [8], None, None, 1e-05)"),
        (lambda x: torch.bitwise_and(x > 0, x < 1), "bitwise_and(%gt, %lt)"),
        (lambda x: (x > 0) & (x < 1), "bitwise_and(%gt, %lt)"),
    ],
)
def test_one_spelling(function: Callable[[Tensor], Tensor], spelled: str) -> None:
    assert normalised(function, X)[-1].split(" = ")[1] == spelled


def filled(x: Tensor, *pieces: tuple[int, int], step: int = 1) -> Tensor:
    """What functionalisation makes of ``y = x.new_empty(..); y[..., a:b] = x[..., a:b] + 1``, piece by piece."""
    y = torch.zeros_like(x)
    for start, end in pieces:
        part = aten.slice.Tensor(x, -1, start, end, step) + 1
        y = aten.slice_scatter(y, aten.copy(aten.slice.Tensor(y, -1, start, end, step), part), 2, start, end, step)
    return y


@pytest.mark.parametrize("pieces", [[(0, 5), (5, 2**63 - 1)], [(5, 8), (0, 2), (2, 5)]])
def test_pieces_that_fill_a_tensor_are_a_cat(pieces: list[tuple[int, int]]) -> None:
    lines = normalised(lambda x: filled(x, *pieces), X)
    assert lines[-1].endswith("], -1)") and " = cat([" in lines[-1] and "scatter(" not in "".join(lines)
    assert lines[-1].count("%add") == len(pieces) and "zeros" not in "".join(lines)


def test_pieces_that_leave_a_gap_or_overlap_stay() -> None:
    for pieces, step in (([(0, 5)], 1), ([(0, 5), (6, 8)], 1), ([(0, 5), (4, 8)], 1), ([(0, 8)], 2)):
        assert "= cat(" not in "".join(normalised(lambda x, p=pieces, s=step: filled(x, *p, step=s), X))


def test_what_changes_the_result_stays() -> None:
    assert normalised(lambda x: x * 1, X.to(torch.int64)) == []
    assert normalised(lambda x: x + 0.0, X) == ["%add = add(%x, 0.0)"]  # -0.0 + 0.0 is 0.0
    assert normalised(lambda x, y: torch.cat((x, y)), X, X[:0]) == ["%cat = cat([%x, %y], -3)"]
    assert normalised(lambda x: x[:, :2], X) == ["%slice = slice(%x, -2, 0, 2)"]
    wide = torch.empty(0, dtype=torch.float64)
    assert normalised(lambda x, y: torch.cat((x, y)), X[0, 0], wide) == ["%cat = cat([%x, %y], -1)"]
    assert normalised(lambda x: torch.cat((x, x)), torch.empty(0)) == []


def test_shapes_are_not_guarded_on() -> None:
    """A dynamic size is never compared with a number, which would fix it."""
    program = traced(lambda x, y: torch.cat((x, y)), torch.ones(3), torch.ones(4), symbolic=True)
    env = program.placeholders()[0].meta["val"].fake_mode.shape_env
    before = len(env.guards)
    assert body(normalise(program)) == ["%cat = cat([%x, %y], -1)"]
    assert len(env.guards) == before


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_linears(bias: bool, rank: int) -> None:
    """``addmm``, ``mm`` and ``matmul`` with a parameter are linears, whichever way the parameter is stored."""

    def conv1d(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch.addmm(b, flat, w) if b is not None else torch.mm(flat, w)
        return out.reshape(*x.shape[:-1], w.shape[-1])

    x, weights = torch.randn(4, 8) if rank == 2 else torch.randn(2, 4, 8), {"w": torch.randn(8, 6)}
    if bias:
        weights["b"] = torch.randn(6)
    before = traced(conv1d, x, **weights)
    after = verify(normalise(before))
    (node,) = after.nodes()
    assert node.target is aten.linear.default and after.tensor("w").shape == (6, 8)
    assert after.value("w").meta["val"].shape == (6, 8)
    assert before.tensor("w").shape == (8, 6)
    torch.testing.assert_close(after.run(x)[0], before.run(x)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("turn", [torch.t, lambda w: w.T, lambda w: w.permute(-1, -2), lambda w: w.transpose(0, 1)])
def test_transposed_parameter(turn: Callable[[Tensor], Tensor]) -> None:
    program = normalise(traced(lambda x, w: x @ turn(w), X, w=torch.randn(6, 8)))
    assert body(program) == ["%matmul = linear(%x, w)"]


def test_a_matrix_that_is_no_parameter_stays() -> None:
    assert normalised(lambda x, y: x @ y, X, torch.ones(8, 4)) == ["%matmul = matmul(%x, %y)"]


def test_addmm_with_a_matrix_bias_or_factors_stays() -> None:
    x, w = torch.ones(3, 8), torch.ones(8, 6)
    full = traced(lambda x, b, w: torch.addmm(b, x, w), x, torch.ones(3, 6), w=w)
    assert body(normalise(full)) == ["%addmm = addmm(%y, %x, w)"]
    scaled = traced(lambda x, b, w: torch.addmm(b, x, w, alpha=2), x, torch.ones(6), w=w)
    assert body(normalise(scaled)) == ["%addmm = addmm(%y, %x, w, alpha=2)"]


def test_tied_parameters_stay_one() -> None:
    program = normal(tied=True)
    assert program.used_params().count("embed.weight") + program.used_params().count("head.weight") == 1
    assert program.run(ids())[0].shape == (2, 5, 32)


@pytest.mark.parametrize("options", [("rms",), ("layer",), ("offset", 2, torch.bfloat16)])
def test_a_model_keeps_every_bit(options: tuple[Any, ...]) -> None:
    assert torch.equal(captured(*options).run(ids())[0], normal(*options).run(ids())[0])


def test_a_model_of_any_size_keeps_every_bit() -> None:
    assert torch.equal(captured().run(ids(3, 7))[0], normal().run(ids(3, 7))[0])


def test_asserts_go_and_sizes_stay_symbolic() -> None:
    class Checked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._check(x.shape[0] > 1)
            return x.reshape(x.shape[0] * 2, 4).to(torch.float32)

    program = normalise(export(Checked(), torch.ones(3, 8), dims={"x": {0: Dim("rows", min=2, max=64)}}))
    assert not [line for line in body(program) if "assert" in line]
    assert program.run(torch.ones(5, 8))[0].shape == (10, 4)


def test_the_input_is_not_edited_and_twice_is_once() -> None:
    before = show(captured())
    once = normalise(captured())
    assert show(captured()) == before
    assert show(normalise(once)) == show(once)


def test_export_and_tracing_give_one_form() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        return F.softmax(F.linear(x.float(), w).view(2, 3, 2, 2).transpose(1, 2), dim=-1).flatten(2)

    exported = normalise(export(Function(function, w=torch.ones(4, 8)), X))
    program = normalise(traced(function, X, w=torch.ones(4, 8)))
    assert [line.split("=", 1)[1].split("(")[0] for line in body(exported)] == [
        line.split("=", 1)[1].split("(")[0] for line in body(program)]
