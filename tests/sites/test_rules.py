"""Each rule on the smallest module that has its op: freedom counted by hand, and every direction exact in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.graph.program import Program
from qpass.passes.raise_ops import raise_ops
from qpass.sites import analyse
from tests.sites.oracle import check_exact, loud

N, K, T = 6, 8, 5  # width between the two linears, of the input; tokens
IDS = torch.tensor([[1, 2, 3, 0, 4], [4, 4, 1, 2, 0]])


class Case(nn.Module):
    """Two linears to K -> N, one from N, and odd parameters; what happens between is the case."""

    def __init__(self, run: Callable[..., Any], wide: int = N) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(K, N), nn.Linear(K, N), nn.Linear(wide, 4)
        self.norm, self.table, self.conv = nn.LayerNorm(K), nn.Embedding(10, N), nn.Conv1d(N, N, 2, groups=N)
        self.dense_conv = nn.Conv1d(N, N, 2)
        self.w, self.v, self.both = (nn.Parameter(torch.ones(size)) for size in (N, N, 2 * N))
        self.big, self.flat = nn.Parameter(torch.ones(2 * N, K)), nn.Parameter(torch.ones(K, N))
        self.up, self.down = nn.Parameter(torch.ones(3, K, N)), nn.Parameter(torch.ones(3, N, 4))
        self.inner = nn.Linear(N, K)
        self.run = run

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.run(self, x, ids)


def program_of(case: nn.Module, *inputs: Tensor) -> Program:
    """NORMAL program of a module of fixed sizes."""
    exported = torch.export.export(case, inputs, strict=False).run_decompositions({})
    return normalise(from_export(exported, prefix="", dims={}, call=None))


def analysed(run: Callable[..., Any], wide: int = N, smooth: bool = False) -> Any:
    case = loud(Case(run, wide))
    x = torch.randn(2, T, K, generator=torch.Generator().manual_seed(0))
    program = program_of(case, x, IDS)
    found = analyse(raise_ops(program), smooth=smooth)
    if not smooth:
        check_exact(program, found, [x, IDS])
    return found


def between(run: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """linear -> run -> linear."""
    return lambda m, x, ids: m.out(run(m.a(x)))


def attend(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    scores = torch.einsum("btd,bsd->bts", m.a(x), m.b(x)) / 2
    return m.out(torch.softmax(scores, -1) @ F.linear(x, m.big[:N]))


def rotated(x: Tensor) -> Tensor:
    half = torch.cat((-x[..., N // 2 :], x[..., : N // 2]), -1)
    angle = torch.arange(T, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.5, 0.2]).repeat(2)
    return x * angle.cos() + half * angle.sin()


def turned(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(2, T, N // 2, 2))
    angle = torch.arange(T)[:, None].to(x.dtype)
    return torch.view_as_real(pairs * torch.view_as_complex(torch.stack((angle.cos(), angle.sin()), -1))).flatten(-2)


def experts(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    return torch.bmm(torch.relu(torch.bmm(x.reshape(1, 2 * T, K).expand(3, 2 * T, K), m.up)), m.down).sum(0)


def gathered(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    which = ids.reshape(-1) % 3
    return torch.bmm(torch.relu(torch.bmm(x.reshape(2 * T, 1, K), m.up[which])), m.down[which])


def routed(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    rows, which = x.reshape(2 * T, K), ids.reshape(-1)
    written = torch.zeros(2 * T, N, dtype=x.dtype).index_add(0, which, m.a(rows[which]))
    return m.out(written)


def halves(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    one, two = m.a(x).chunk(2, -1)
    return m.out(torch.cat((two, one * 2), -1))


def again(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    for _ in range(2):
        x = m.inner(torch.relu(m.a(x)))
    return x


def rms(m: Any, x: Tensor, ids: Tensor) -> Tensor:
    h = m.a(x)
    return m.out(h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + m.w))


CASES: dict[str, tuple[int, Callable[..., Any]] | tuple[int, Callable[..., Any], int]] = {
    "linear": (N, between(lambda h: h)),
    "relu": (N, between(torch.relu)),
    "leaky_relu": (N, between(lambda h: F.leaky_relu(h, 0.1))),
    "clamp at 0": (N, between(lambda h: h.clamp(min=0))),
    "clamp elsewhere": (0, between(lambda h: h.clamp(0, 6))),
    "squared relu": (N, between(lambda h: torch.relu(h).square())),
    "cube": (N, between(lambda h: h**3)),
    "sqrt of abs": (N, between(lambda h: h.abs().sqrt())),
    "reciprocal": (N, between(lambda h: 1 / h)),
    "neg, mul, div": (N, between(lambda h: -h * 3 / 7)),
    "add a number": (0, between(lambda h: h + 1)),
    "add zero": (N, between(lambda h: h + 0.0)),
    "gelu": (0, between(F.gelu)),
    "sigmoid": (0, between(torch.sigmoid)),
    "soft cap": (0, between(lambda h: torch.tanh(h / 5) * 5)),
    "sign": (N, lambda m, x, ids: m.out(m.a(x) * torch.sign(m.a(x)))),
    "product": (2 * N, lambda m, x, ids: m.out(m.a(x) * m.b(x))),
    "quotient": (2 * N, lambda m, x, ids: m.out(m.a(x) / m.b(x).square())),
    "sum": (N, lambda m, x, ids: m.out(m.a(x) + m.b(x))),
    "difference": (N, lambda m, x, ids: m.out(m.a(x) - m.b(x))),
    "maximum": (N, lambda m, x, ids: m.out(torch.maximum(m.a(x), m.b(x)))),
    "where": (N, lambda m, x, ids: m.out(torch.where(x[..., :1] > 0, m.a(x), m.b(x)))),
    "masked with 0": (N, lambda m, x, ids: m.out(m.a(x).masked_fill(x[..., :1] > 0, 0.0))),
    "masked with 1": (0, lambda m, x, ids: m.out(m.a(x).masked_fill(x[..., :1] > 0, 1.0))),
    "addcmul": (2 * N, lambda m, x, ids: m.out(torch.addcmul(m.a(x), m.b(x), F.linear(x, m.big[:N])))),
    "cat": (2 * N, lambda m, x, ids: m.out(torch.cat((m.a(x), m.b(x)), -1)), 2 * N),
    "chunk and cat": (N, halves),
    "split, product": (2 * N, lambda m, x, ids: m.out(torch.mul(*F.linear(x, m.big).split(N, -1)))),
    "slices": (N, between(lambda h: h[..., 1:-1]), N - 2),  # rows that nobody reads are free too
    "flip, roll": (N, between(lambda h: h.flip(-1).roll(2, -1))),
    "repeat_interleave": (N, between(lambda h: h.repeat_interleave(2, -1)), 2 * N),
    "repeat": (N, between(lambda h: h.repeat(1, 1, 2)), 2 * N),
    "expand": (N, between(lambda h: h[..., None].expand(2, T, N, 2).reshape(2, T, 2 * N)), 2 * N),
    "permute, unbind, stack": (N, between(lambda h: torch.stack(h.permute(2, 0, 1).unbind(0), -1))),
    "index by constants": (N, between(lambda h: h[..., torch.tensor([0, 5, 1, 2, 3, 1])])),
    "index by data": (1, lambda m, x, ids: m.out(m.a(x).gather(-1, ids[..., None].expand(2, T, N)))),
    "pad with 0": (N, between(lambda h: F.pad(h, (0, 2))), N + 2),
    "pad with 1": (0, between(lambda h: F.pad(h, (0, 2), value=1.0)), N + 2),
    "tril over tokens": (N, between(lambda h: torch.tril(h.transpose(1, 2)).transpose(1, 2))),
    "mean of tokens": (N, between(lambda h: h.mean(1))),
    "mean of channels": (1, between(lambda h: h.mean(-1, keepdim=True)), 1),
    "largest channel": (1, between(lambda h: h.amax(-1, keepdim=True)), 1),
    "length": (1, between(lambda h: h.norm(dim=-1, keepdim=True)), 1),
    "cumsum of tokens": (N, between(lambda h: h.cumsum(1))),
    "cumsum of channels": (1, between(lambda h: h.cumsum(-1))),
    "parameter": (2 * N, lambda m, x, ids: m.out(m.a(x) * m.w)),
    "parameter with an offset": (2 * N, lambda m, x, ids: m.out(m.a(x) * (1.0 + m.w))),
    "parameter read twice": (2 * N, lambda m, x, ids: m.out(m.a(x) * m.w * m.w)),
    "parameter with and without offset": (N, lambda m, x, ids: m.out(m.a(x) * m.w * (1.0 + m.w))),
    "parameter added": (N, lambda m, x, ids: m.out(m.a(x) + m.w)),
    "two halves of a parameter": (3 * N, lambda m, x, ids: m.out(m.a(x) * m.both[:N] * m.both[N:])),
    "offset norm by hand": (N, rms),
    "layer_norm": (K, lambda m, x, ids: m.a(m.norm(x))),
    "embedding": (N, lambda m, x, ids: m.out(m.table(ids))),
    "embedding tied to a head": (0, lambda m, x, ids: F.linear(m.table(ids), m.table.weight)),
    "depthwise conv": (2 * N, between(lambda h: h)),  # replaced below, as it needs the module
    "weight on the right": (N, lambda m, x, ids: m.out(x @ m.flat)),
    "weight on the left": (N, lambda m, x, ids: m.out((m.flat.t() @ x.transpose(1, 2)).transpose(1, 2))),
    "slices of one weight": (2 * N, lambda m, x, ids: m.out(F.linear(x, m.big[:N]) * F.linear(x, m.big[N:]))),
    "slices that overlap": (0, lambda m, x, ids: m.out(F.linear(x, m.big[:N]) * F.linear(x, m.big[2 : N + 2]))),
    "experts": (3 * N, experts),
    "experts picked by data": (N, gathered),
    "rows scattered": (N, routed),
    "attention by einsum": (2 * N, attend),
    "einsum with a parameter": (N, lambda m, x, ids: m.out(torch.einsum("...k,kn->...n", x, m.flat))),
    "einsum, parameter first": (N, lambda m, x, ids: m.out(torch.einsum("kn,btk->btn", m.flat, x))),
    "einsum over experts": (3 * N, lambda m, x, ids: torch.einsum(
        "ebtn,eno->bto", torch.einsum("btk,ekn->ebtn", x, m.up).relu(), m.down)),
    "rotary": (N // 2, lambda m, x, ids: rotated(m.a(x)) @ rotated(m.b(x)).mT),
    "rotary in complex numbers": (N // 2, lambda m, x, ids: turned(m.a(x)) @ turned(m.b(x)).mT),
    "a block applied twice": (N, again),
    "slice_scatter": (N, between(lambda h: torch.slice_scatter(h, h[..., :2] * 2, -1, 1, 3))),
}
CASES["depthwise conv"] = (2 * N, lambda m, x, ids: m.out(m.conv(m.a(x).mT).mT))
CASES["dense conv"] = (2 * N, lambda m, x, ids: m.out(m.dense_conv(m.a(x).mT).mT))


@pytest.mark.parametrize("name", CASES)
def test_freedom_by_hand_and_exact(name: str) -> None:
    freedom, run, *wide = CASES[name]
    assert analysed(run, *wide).freedom == freedom


@pytest.mark.parametrize(("kind", "run"), [
    ("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda h: F.gelu(h, approximate="tanh")),
    ("quick_gelu", lambda h: h * torch.sigmoid(1.702 * h)),
])  # fmt: skip
def test_smoothed_activations_pass_a_factor(kind: str, run: Callable[[Tensor], Tensor]) -> None:
    assert analysed(between(run)).freedom == 0
    found = analysed(between(run), smooth=True)
    assert (found.freedom, found.sites[0].kind, len(found.sites[0].smooths)) == (N, "gated activation", 1)


def test_an_op_without_a_rule_is_named_with_its_line() -> None:
    found = analysed(between(torch.special.bessel_j0))
    (text,) = found.unknown.values()
    assert "bessel_j0" in text and "test_rules.py" in text
    assert found.freedom == 0 and "has no rule" in str(found)


def test_weights_shared_in_conflict_are_refused_by_name() -> None:
    found = analysed(CASES["slices that overlap"][1])
    assert found.sites == () and "big is shared by" in " ".join(found.refused.values())


def test_one_tensor_of_two_names_moves_under_both() -> None:
    """As a tracer may leave a tied weight."""
    case = loud(Case(lambda m, x, ids: m.out(m.a(x) * m.w) + m.out(m.b(x) * m.v)))
    program = program_of(case, torch.randn(2, T, K), IDS)
    program = replace(program, params={**program.params, "v": program.params["w"]})
    found = analyse(program)
    site = next(site for site in found.sites if any(axis.param == "w" for axis in site.axes))
    assert {"v", "w"} <= {axis.param for axis in site.axes}
    check_exact(program, found, [torch.randn(2, T, K), IDS])


def test_views_by_stride_are_not_followed() -> None:
    """Labels have other strides than the values they stand for."""
    assert analysed(between(lambda h: torch.as_strided(h.contiguous(), (2, T, N), (T * N, 1, T)))).freedom == 0


def test_the_program_is_not_changed() -> None:
    case = loud(Case(attend))
    program = program_of(case, torch.randn(2, T, K), IDS)
    before = {name: program.tensor(name).clone() for name in program.params}
    nodes = [node.format_node() for node in program.graph.nodes]
    analyse(program)
    assert nodes == [node.format_node() for node in program.graph.nodes]
    assert all(torch.equal(program.tensor(name), value) for name, value in before.items())


class Scalar(nn.Module):
    """A temperature, and a parameter of no elements."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(K, N), nn.Linear(N, 4)
        self.scale, self.none = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.empty(4, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * self.scale) + F.linear(x[..., :0], self.none)


def test_parameters_of_one_number_and_of_none() -> None:
    program, x = program_of(Scalar().eval(), torch.randn(2, T, K)), torch.randn(2, T, K)
    found = analyse(program)
    assert found.freedom == N + 1
    check_exact(program, found, [x])


ODD: dict[str, tuple[int, Callable[..., Any]]] = {
    "layer_norm with a computed bias": (N, lambda m, x: m.out(F.layer_norm(m.a(x), (N,), m.w, m.v * 1.5))),
    "norm of order 0": (N, lambda m, x: m.out(m.b(x) * torch.linalg.vector_norm(m.a(x), 0, dim=-1, keepdim=True))),
    "copy into integers": (0, lambda m, x: m.out((m.a(x) * 3).to(torch.int64).to(x.dtype))),
    "larger of a parameter": (0, lambda m, x: m.out(torch.max(m.a(x), m.w))),
    "attention of two dimensions": (N, lambda m, x: F.scaled_dot_product_attention(x[0], x[0], m.a(x[0])) @ m.flat.t()),
    "rows assigned by a mask": (N, lambda m, x: m.out(torch.where(x[..., :1] > 0, m.a(x), m.b(x)))),
    "scatter that multiplies": (0, lambda m, x: m.out(torch.scatter(
        m.a(x), -1, torch.zeros(2, T, N, dtype=torch.int64), m.b(x), reduce="multiply"))),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_calls_are_exact(name: str) -> None:
    freedom, run = ODD[name]
    assert analysed(lambda m, x, ids: run(m, x)).freedom == freedom
