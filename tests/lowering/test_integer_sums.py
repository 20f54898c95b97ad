"""What integer kernels add up: closed forms, operands that reach them with the same bits as the meaning, refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import sympy as sp
import torch
from torch import Tensor, fx

from qpass import ops
from qpass.graph.program import Program
from qpass.lowering import Target
from qpass.lowering.cpu import integer, integer_sums, kernels, kernels_integer
from qpass.lowering.cuda import integer as cuda
from qpass.numerics.integer.dyadic import fit_one, vector
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.linear import room
from qpass.numerics.integer.norm import WIDEST
from qpass.passes.kernel_sums import kernel_sums
from qpass.passes.lower import Takers
from qpass.passes.providers import provider_refuses

needs_kernels = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
K, T, N, D = sp.symbols("K T n D", integer=True, positive=True)
TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
LIMIT = (1 << 31) - 1


def fitting(form: sp.Expr, symbol: sp.Symbol) -> int:
    """The greatest whole number for which a linear form is within int32."""
    return int(sp.floor((LIMIT - form.subs(symbol, 0)) / sp.diff(form, symbol)))


def meta(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def linear_args(width: int) -> list[object]:
    return [meta(1, width, dtype=torch.int8), None, None, None, meta(4, width, dtype=torch.int8)]


def attention_args(width: int, bits: int = 8) -> list[object]:
    q, cache = meta(1, 1, 1, width, dtype=torch.int8), meta(1, 1, 1, width + 2, dtype=torch.int8)
    return [q, None, None, cache, cache, None, False, None, 1, 1, bits, 0, "precise"]


def sums(name: str, context: int, *args: object) -> dict[str, int]:
    found = getattr(integer_sums, name)(context, *args)
    return {part.name: part.most for part in found}


def over(name: str, context: int, *args: object) -> list[str]:
    return [part.name for part in getattr(integer_sums, name)(context, *args) if not part.fits]


def test_closed_forms_and_where_they_end() -> None:
    dot = 255 * 128 * K
    assert sums("linear", 1, *linear_args(512))["the sum of unsigned codes times weights"] == dot.subs(K, 512)
    assert fitting(dot, K) == 65793 and not over("linear", 1, *linear_args(65793))
    assert over("linear", 1, *linear_args(65794)) == ["the sum of unsigned codes times weights",
                                                       "the zero point times the sum of a weight's row"]  # fmt: skip
    halves = (2**16 - 1) * N
    assert fitting(halves, N) >= WIDEST and not over("layer_norm", 1, meta(1, WIDEST))
    assert sums("norm", 1, meta(1, 100))["low halves of squares"] == halves.subs(N, 100)
    low = 255 * 127 * T
    assert fitting(low, T) == 66311 >= integer_sums.CHUNK
    lane = 2**15 * T / 16
    assert fitting(lane, T) == 1048575 and not over("attention", 1048560, *attention_args(64))
    assert over("attention", 1 << 20, *attention_args(64)) == ["the sum of numerators in a lane"]
    score = 127**2 * 255 * D + 2**30  # from 131 channels on nothing is shifted left
    assert fitting(score, D) == 261 and not over("attention", 64, *attention_args(261))
    assert over("attention", 64, *attention_args(262)) == ["a score times the key's mantissa, and what rounds it"]
    assert not over("activation", 1) and all(part.most > 0 for part in integer_sums.activation(1))


def test_every_kernel_that_sums_says_so() -> None:
    known = {name for name, provider in integer.PROVIDERS.items() if provider.accumulators is not None}
    assert known == {"integer_linear", "integer_attention", "integer_rms_norm", "integer_layer_norm",
                     "integer_activation", "integer_gated"}  # fmt: skip


def attending(width: int) -> fx.Node:
    """A node that asks for attention, with types only."""
    graph, args = fx.Graph(), []
    for number, arg in enumerate(attention_args(width)):
        if isinstance(arg, Tensor):
            arg, value = graph.placeholder(f"input{number}"), arg
            arg.meta["val"] = value
        args.append(arg)
    return graph.call_function(ops.integer_attention, tuple(args))


def test_a_kernel_that_does_not_fit_leaves_the_node_to_the_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: None)
    provider, node = integer.PROVIDERS["integer_attention"], attending(64)
    assert provider_refuses(provider, node, 1048560) is None
    reason = "the sum of numerators in a lane can reach 2147483648 in 1048576 tokens, beyond 32 bits"
    assert provider_refuses(provider, node, 1 << 20) == reason
    assert provider_refuses(provider, attending(262), 64) is not None
    for context, taken in ((64, provider), (1 << 20, None)):
        assert Takers(integer.PROVIDERS, context).of(node) is taken


def test_what_a_gpu_has_beside_the_meanings() -> None:
    """Sums of the others have the meaning's terms and width."""
    known = {name: provider.accumulators for name, provider in cuda.PROVIDERS.items() if provider.accumulators}
    assert set(known) == {"integer_attention", "integer_gated"}
    attention = known["integer_attention"]
    for context, last in ((131071, []), (131072, ["the sum of a byte of the weights times values"])):
        assert [part.name for part in attention(context, *attention_args(256)) if not part.fits] == last
    for width in (2, 64, 130, 131, 256):  # of which the score gains the most bits where D · 255 is just below 2^k
        for bits in (4, 8):
            score = attention(64, *attention_args(width, bits))[0]
            assert 2 * score.most > 1 << 29 and score.most <= 1 << 30
    assert all(part.fits for part in known["integer_gated"](64))


def test_sums_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: None)
    node = attending(64)
    node.meta["name"] = "attention.whole"
    program = Program(node.graph, {}, "INTEGER", call=SimpleNamespace(context=100))
    target = Target("here", (), lambda program: torch.nn.Module(), providers=integer.PROVIDERS)
    text = str(kernel_sums(program, target))
    assert text.startswith("sums of the kernels of target here\n")
    low = next(line.split() for line in text.splitlines() if "low bytes" in line)
    assert low[-5:] == ["attention.whole", str(100 * 255 * 127), "23", "of", "32"]
    assert "no kernel has sums" in str(kernel_sums(replace(program, graph=fx.Graph()), target))


def same(name: str, *args: object, **packed: Tensor) -> None:
    got, want = integer.PROVIDERS[name].call(*args, **packed), ops.REGISTRY[name].meaning(*args)
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))


@needs_kernels
@pytest.mark.parametrize(("width", "symmetric"), [(65793, True), (32896, False)])
def test_linear_at_its_largest_sums(width: int, symmetric: bool) -> None:
    """Unsigned codes of 255 times weights of -128: 2147483520 of 2147483647 for the widest symmetric linear."""
    rows = torch.full((10, width), 127, dtype=torch.int8)
    rows[1], rows[2, ::2] = -127 - (not symmetric), -127
    weight = torch.full((4, width), -128, dtype=torch.int8)
    weight[1], weight[2, ::2] = 127, 127
    total = weight.sum(1, dtype=torch.int32)
    zero = None if symmetric else torch.tensor([[127], [-128]] * 5, dtype=torch.int32)
    m, k = torch.full((10, 1), 32767, dtype=torch.int32), torch.full((10, 1), 20, dtype=torch.int32)
    up = room(width, 127 if symmetric else 255)
    scale = vector(torch.full((4,), 0.9, dtype=torch.float64))
    args = (rows, zero, m, k, weight, *scale, None if symmetric else total, None, None, up)
    table = kernels_integer.pack_table(kernels.BLOCK, *scale, total)
    same("integer_linear", *args, packed=kernels.pack_int8_weight(weight), table=table)


def cache(length: int, width: int, code: int) -> Tensor:
    """Codes of one size, mantissas of 255, the least exponents of all at the first key."""
    made = torch.full((1, 1, length, width + 2), code, dtype=torch.int8)
    made[..., -2], made[..., -1] = 63, 20
    made[:, :, 1::2, :-2] = -code
    return made


def attended(width: int, length: int, spread: int, dv: int = 4) -> None:
    q = torch.full((1, 2, 2, width), 127, dtype=torch.int8)
    q[:, :, 1] = 0  # all weights are equal: the largest sums of them
    keys, values = cache(length, width, 127), cache(length, dv, 127)
    values[:, :, 1::2, :-2] = 127
    values[..., 1] = -127
    keys[:, :, 1:, -1] += spread
    m, k = torch.full((1, 2, 2, 1), 32767, dtype=torch.int32), torch.full((1, 2, 2, 1), 30, dtype=torch.int32)
    args = (q, m, k, keys, values, None, False, TABLE_T, *fit_one(0.2), 8, 0, "precise")
    assert integer.PROVIDERS["integer_attention"].refuses(*args) is None
    same("integer_attention", *args)


@needs_kernels
def test_attention_over_more_keys_than_one_sum_holds() -> None:
    """255 · 127 · T leaves int32 at 66,312 keys, 127 · 127 · T at 133,145."""
    attended(4, 140_001, 0)
    attended(4, 66_400, 0, dv=70)


@needs_kernels
def test_attention_at_its_largest_scores() -> None:
    for width in (130, 131, 261):
        for spread in (0, 29, 60):
            attended(width, 40, spread)


@needs_kernels
def test_norms_at_their_largest_sums() -> None:
    eps = fit_one(WIDEST * 1e-5)
    x = torch.full((6, WIDEST), (1 << 29) - 1, dtype=torch.int32)
    x[1], x[2, ::2], x[3, 1:], x[4] = -x[1], -x[2, ::2], 0, (1 << 30) - 1
    x[5] = 46340 << 14  # squares whose low halves are the largest
    k = torch.full((6, 1), 20, dtype=torch.int32)
    for name, bias in (("integer_rms_norm", ()), ("integer_layer_norm", (None, None))):
        same(name, x, k, None, None, None, *bias, *eps, "precise")
