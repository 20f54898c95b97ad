"""The CUDA kernels of integer-only programs, in Triton's interpreter, give the bits of the ops' meanings.

The meanings are the oracle: they are checked against float64 in tests/numerics/integer. The interpreter takes its time
for each program, not for each number, so rows of every kind share few programs.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from transformers import LlamaConfig, LlamaForCausalLM

import qpass
from qpass import ops, pipeline
from qpass.graph.integer_only import verify_integer_only
from qpass.lowering.cuda import integer, integer_tiles, tiles
from qpass.lowering.inductor.buckets import rows_of
from qpass.lowering.triton.layout import padded_rows
from qpass.numerics.integer.cache import pack
from qpass.numerics.integer.dyadic import fit_one, row_of, vector
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.norm import width_root
from qpass.numerics.integer.quantize import quantize_rows
from qpass.passes.plan import provided
from tests.lowering.cuda import fakegpu
from tests.lowering.cuda.generated import launches
from tests.lowering.test_cpu_integer import LOG2E, hard, same

TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
PROVIDERS = integer.PROVIDERS
ONE = vector(torch.tensor([LOG2E], dtype=torch.float64))
EDGE = (1 << 30) - 1
"""A number that normalizing rounds up to the next power of two."""


def rows(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, k = hard(count, width, seed)
    x[0], k[0] = EDGE, 29
    return x, k


def check(name: str, *args: object, **packed: Tensor) -> None:
    """The provider of an op takes these arguments and gives the op's bits."""
    assert PROVIDERS[name].refuses(*args) is None
    same(PROVIDERS[name].call(*args, **packed), ops.REGISTRY[name].meaning(*args))


def channels(width: int) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(width)
    size = torch.exp2(torch.randint(-20, 3, (width,), generator=make).double())
    return vector(torch.randn(width, dtype=torch.float64, generator=make) * size)


@pytest.mark.parametrize(("width", "bits", "symmetric", "mantissa"),
                         [(33, 8, False, 15), (2, 8, True, 8), (64, 4, False, 15)])  # fmt: skip
def test_rows(width: int, bits: int, symmetric: bool, mantissa: int) -> None:
    x, k = rows(120, width)
    check("integer_quantize", x, k, bits, symmetric, mantissa)
    check("integer_add", x, k, *rows(120, width, 1))
    check("integer_merge_heads", x.reshape(30, 4, width), k.reshape(30, 4, 1))
    check("integer_pack", x.reshape(2, 3, 20, width), k.reshape(2, 3, 20, 1), bits)


@pytest.mark.parametrize(("width", "eps"), [(33, 1e-5), (128, 1.0), (16, 0.0)])
def test_norms(width: int, eps: float) -> None:
    x, k = rows(120, width)
    constants, bias = (*fit_one(width * eps), "precise"), row_of(torch.linspace(-3, 2, width, dtype=torch.float64))
    check("integer_rms_norm", x, k, *channels(width), *constants)
    check("integer_layer_norm", x, k, None, None, None, None, None, *constants)
    check("integer_layer_norm", x, k, *channels(width), *bias, *constants)


@pytest.mark.parametrize("kind", list(integer.KINDS))
def test_activations(kind: str) -> None:
    for width, factor in ((33, ONE), (64, vector(torch.linspace(0.1, 4, 64, dtype=torch.float64)))):
        x, k = rows(120, width, 3)
        check("integer_activation", x, k, kind, *factor, TABLE_T, "precise")
        check("integer_gated", x, k, *rows(120, width, 4), kind, *factor, TABLE_T, "precise")


def test_activations_of_rows_in_two_halves() -> None:
    """Of 9000 channels the second half has 808: the largest numbers of a row may be in either."""
    integer.load()
    op, width = torch.ops.qpass_cuda, 9000
    (x, k), (y, ky) = rows(2, width, 3), rows(2, width, 4)
    x[1, 8500:] = EDGE
    each = vector(torch.linspace(0.1, 4, width, dtype=torch.float64))
    assert integer_tiles.row_tile(width).halved and not integer_tiles.row_tile(8192).halved
    check("integer_activation", x, k, "gelu", *ONE, TABLE_T, "precise")
    check("integer_gated", x, k, y, ky, "silu", *each, TABLE_T, "precise")
    gate = (x, k, y, ky, integer.KINDS["silu"], *each, TABLE_T)
    found = op.integer_gated(*gate)
    for form in ((8, False), (4, True)):
        same(op.integer_gated_quantize(*gate, *form), op.integer_quantize(*found, *form))


def test_strides_and_no_rows() -> None:
    x, k = rows(2 * 5 * 3, 32)
    heads, shared = x.reshape(2, 5, 3, 32).transpose(1, 2), k[:10].reshape(2, 5, 1, 1).transpose(1, 2)
    cos, sin = (torch.randint(-(2**14), 2**14 + 1, (1, 1, 5, 32)).to(torch.int16) for _ in range(2))
    check("integer_rotary", heads, shared, cos, sin)
    check("integer_quantize", heads, shared, 8, True)
    check("integer_merge_heads", heads.transpose(1, 2), k.reshape(2, 5, 3, 1))
    empty = PROVIDERS["integer_quantize"].call(x[:0], k[:0], 8, False)
    assert [part.shape for part in empty] == [(0, 32), (0, 1), (0, 1), (0, 1)]


def test_joined_operators_are_their_parts() -> None:
    integer.load()
    op, (x, k), (y, ky) = torch.ops.qpass_cuda, rows(64, 16), rows(64, 16, 5)
    w, heads, hk = channels(16), x.reshape(2, 8, 4, 16), k.reshape(2, 8, 4, 1)
    angles = tuple(torch.randint(-(2**14), 2**14 + 1, (2, 1, 4, 16)).to(torch.int16) for _ in range(2))
    gate, form = (1, *ONE, TABLE_T), (8, False)
    norm = (*w, None, None, [*fit_one(16e-5), *width_root(16), 0])
    same(op.integer_norm_quantize(x, k, *norm, *form), op.integer_quantize(*op.integer_norm(x, k, *norm), *form))
    total = op.integer_add(x, k, y, ky)
    want = *total, *op.integer_quantize(*op.integer_norm(*total, *norm), *form)
    same(op.integer_add_norm_quantize(x, k, y, ky, *norm, *form), want)
    same(op.integer_gated_quantize(x, k, y, ky, *gate, *form),
         op.integer_quantize(*op.integer_gated(x, k, y, ky, *gate), *form))  # fmt: skip
    same(op.integer_activation_quantize(x, k, *gate, *form),
         op.integer_quantize(*op.integer_activation(x, k, *gate), *form))  # fmt: skip
    same(op.integer_merge_heads_quantize(heads, hk, *form),
         op.integer_quantize(*op.integer_merge_heads(heads, hk), *form))  # fmt: skip
    turned = op.integer_rotary(heads, hk, *angles)
    same(op.integer_rotary_quantize(heads, hk, *angles, 8, True), op.integer_quantize(*turned, 8, True))
    same(op.integer_rotary_pack(heads, hk, *angles, 8), op.integer_pack(*turned, 8))


@pytest.mark.parametrize(("count", "n", "k"), [(1, 32, 64), (3, 33, 5), (9, 200, 130), (70, 24, 1100)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_linear(count: int, n: int, k: int, symmetric: bool) -> None:
    make = torch.Generator().manual_seed(count)
    codes = torch.randint(-128 + symmetric, 128, (count, k), generator=make).to(torch.int8)
    weight = torch.randint(-128, 128, (n, k), generator=make).to(torch.int8)
    codes[0], weight[0], weight[-1] = 127, -128, 127  # the largest sums
    zero = None if symmetric else torch.randint(-128, 128, (count, 1), generator=make).to(torch.int32)
    m, e = (torch.randint(low, high, (count, 1), generator=make).to(torch.int32)
            for low, high in ((1 << 14, 1 << 15), (-20, 40)))  # fmt: skip
    sums, counters = weight.sum(1, dtype=torch.int32), torch.zeros(tiles.counters(padded_rows(n)), dtype=torch.int32)
    up = 30 - (k * 255 * 128 - 1).bit_length()
    for bias in ((None, None), row_of(torch.randn(n, dtype=torch.float64, generator=make))):
        args = (codes, zero, m, e, weight, *channels(n), None if symmetric else sums, *bias, up)
        check("integer_linear", *args, plain=weight, counters=counters)
    assert not counters.any()


def attention_args(shape: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    batch, heads, key_heads, queries, length, d, dv = shape
    q, q_k = hard(batch * heads * queries, d, seed)
    codes, _, m, k = quantize_rows(q, 20 + q_k % 8, 8, True)
    caches = []
    for width in (d, dv):
        x, _ = hard(batch * key_heads * length, width, seed + width)
        make = torch.Generator().manual_seed(seed)
        spread = torch.randint(18, 31 if seed else 60, (x.shape[0], 1), generator=make).to(torch.int32)
        caches.append(pack(x, spread).reshape(batch, key_heads, length, width + 2))
    return (*(part.reshape(batch, heads, queries, -1) for part in (codes, m, k)), *caches)


ATTENTION = [  # batch, query heads, key heads, queries, keys, d, dv; which mask; clip; scale
    ((1, 4, 2, 1, 70, 64, 64), None, False, 0, 0.125), ((2, 2, 2, 7, 7, 32, 16), "some", True, 0, 30.0),
    ((1, 6, 2, 9, 40, 80, 96), "past", False, 250000, 0.1), ((1, 2, 1, 3, 3, 4, 2), None, True, 0, 0.5),
    ((1, 2, 1, 2, 5, 8, 8), "none", False, 0, 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "mask", "causal", "clip", "scale"), ATTENTION, ids=str)
def test_attention(shape: tuple[int, ...], mask: str | None, causal: bool, clip: int, scale: float) -> None:
    batch, _, _, queries, length, *_ = shape
    ones = torch.ones(batch, 1, queries, length, dtype=torch.bool)
    some = torch.rand(ones.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    keep = {None: None, "some": some, "past": ones.tril(length - queries), "none": ~ones}[mask]
    check("integer_attention", *attention_args(shape, queries % 2), keep, causal, TABLE_T, *fit_one(LOG2E * scale), 8,
          clip, "precise")  # fmt: skip


@pytest.mark.parametrize(("shape", "mask", "causal", "clip", "scale"), [
    ((1, 4, 2, 1, 333, 32, 16), None, False, 0, 2.0), ((2, 4, 1, 5, 150, 16, 32), "some", False, 200000, 0.3),
    ((1, 3, 1, 6, 101, 8, 8), "window", False, 0, 1.0), ((1, 2, 1, 8, 8, 8, 8), None, True, 0, 1.0),
    ((1, 2, 1, 70, 70, 8, 8), None, True, 0, 1.0), ((1, 2, 1, 2, 97, 8, 8), "none", False, 0, 0.3),
    ((1, 2, 1, 3, 257, 8, 16), "late", False, 0, 0.5),
], ids=str)  # fmt: skip
def test_attention_cut_over_keys(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], mask: str | None, causal: bool, clip: int, scale: float
) -> None:  # fmt: skip
    """One program a part of the keys, ragged lengths, parts that a row sees nothing of: the bits of the meaning."""
    batch, _, _, queries, length, *_ = shape
    ones = torch.ones(batch, 1, queries, length, dtype=torch.bool)
    some = torch.rand(ones.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    window = ones.tril(length - queries) & ones.triu(length - queries - 20)
    late = ones.clone()
    late[:, :, -1, :-1] = False  # one row sees the last key only
    keep = {None: None, "some": some, "window": window, "none": ~ones, "late": late}[mask]
    args = (keep, causal, TABLE_T, *fit_one(LOG2E * scale), 8, clip, "precise")
    monkeypatch.setattr(integer_tiles, "SHARE", 32 if queries < 5 else 64)
    with tiles.compiling_for(tiles.FEW):
        for most in (4, 8):
            monkeypatch.setattr(integer_tiles, "MOST_PARTS", most)
            check("integer_attention", *attention_args(shape, length % 2), *args)


def test_sums_of_parts_at_their_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest score is in another part than the least exponent, which is as far below as it can be."""
    monkeypatch.setattr(integer_tiles, "SHARE", 32)
    keys = torch.full((1, 1, 96, 34), 127, dtype=torch.int8)
    keys[..., -2] = 63
    for first, last in ((-128, 127), (127, -128), (0, 28), (0, 3)):
        keys[:, :, :32, -1], keys[:, :, 32:, -1] = first, last
        keys[:, :, ::2, :-2] = -127
        q = torch.full((1, 2, 1, 32), 127, dtype=torch.int8)
        q[:, 1] = -127
        m, k = torch.full((1, 2, 1, 1), 32767, dtype=torch.int32), torch.full((1, 2, 1, 1), 30, dtype=torch.int32)
        check("integer_attention", q, m, k, keys, keys, None, False, TABLE_T, *fit_one(0.18), 8, 0, "precise")


def test_attention_of_saturated_codes() -> None:
    """All codes at their ends and all weights equal: the largest sums that there are, and the largest weight, 32640."""
    q = torch.full((1, 1, 2, 64), 127, dtype=torch.int8)
    q[..., 1, :] = -127
    keys = torch.full((1, 1, 100, 66), 127, dtype=torch.int8)
    keys[..., -2:] = torch.tensor([63, 20], dtype=torch.int8)
    values = keys.clone()
    values[:, :, ::2, :-2] = -128
    m, k = torch.full((1, 1, 2, 1), 32767, dtype=torch.int32), torch.full((1, 1, 2, 1), 30, dtype=torch.int32)
    for one in (values, keys):
        check("integer_attention", q, m, k, keys, one, None, False, TABLE_T, *fit_one(0.18), 8, 0, "precise")


def test_what_a_kernel_does_not_take() -> None:
    x, k = rows(4, 8)
    refuses = {name: provider.refuses for name, provider in PROVIDERS.items()}
    wide = torch.empty(1, 20000, dtype=torch.int32)
    assert "not paper" in str(refuses["integer_rms_norm"](x, k, None, None, None, 1, 1, "paper"))
    assert "up to 16384 channels in registers, not 20000" in str(refuses["integer_quantize"](wide, k, 8, True))
    assert "not literal" in str(refuses["integer_quantize"](x, k, 8, True, 15, "literal"))
    assert refuses["integer_quantize"](x, k, 8, True, 15, "paper") is None
    assert "neighbors" in str(refuses["integer_rotary"](x, k, x.short(), x.short(), True))
    assert "[batch, heads, tokens, channels]" in str(refuses["integer_pack"](x, k, 8))
    assert "has no tanh" in str(refuses["integer_activation"](x, k, "tanh", "precise"))
    q, keys = torch.zeros(1, 1, 1, 7), torch.zeros(1, 1, 3, 9)
    rest = (False, TABLE_T, 1, 1, 8, 0, "precise")
    assert "an even number" in str(refuses["integer_attention"](q, k, k, keys, keys, None, *rest))
    long = torch.empty(1, 1, 1 << 17, 10, device="meta")
    assert "131072 keys could overflow" in str(refuses["integer_attention"](q[..., :6], k, k, long, long, None, *rest))


@functools.cache
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=48, tie_word_embeddings=False)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@functools.cache
def stages() -> Any:
    return qpass.trace(llama(), "int-only-w8a8", target="cuda")


def test_a_model() -> None:
    """Planned with our kernels by name, joined, integers only, and the bits of the ops' meanings for a prompt."""
    program = stages()["LOWERED"]
    plan = "\n".join(provided(stages()["INTEGER"], pipeline.load_target("cuda")))
    for name in ("linear", "attention", "norm", "gated", "rotary", "quantize", "pack", "add", "merge_heads"):
        assert f"kernel cuda.integer_{name}" in plan
    verify_integer_only(program)
    called = [str(node.target).split(".")[1] for node in program.nodes() if "qpass_cuda" in str(node.target)]
    assert called.count("integer_linear") == 8 and called.count("integer_attention") == 1
    assert called.count("integer_add_norm_quantize") == 1 and called.count("integer_gated_quantize") == 1
    assert called.count("integer_norm") == called.count("integer_quantize") == 1  # the head's: the last token between
    assert "integer_rotary" not in called and "integer_merge_heads" not in called
    inputs = prompt(program, 2, 3)
    same(program.run(*inputs), stages()["INTEGER"].run(*inputs))
    assert rows_of(program)(inputs) == 6  # tokens, not tokens of every head


def test_what_a_decode_step_launches() -> None:
    """Inductor takes the operators apart into our kernels; what is left to it is pointwise, but for the logits."""
    found = launches(fakegpu.code_of_bucket(stages()["LOWERED"], tiles.FEW))
    ours = [re.sub(r"_kernel_\d+$", "", name) for name in found if name.startswith("integer_")]
    assert ours == [f"integer_{name}" for name in LAYER.split()]
    assert all(name.startswith(("integer_", "triton_")) for name in found)
    assert sum(name.startswith("triton_per") for name in found) <= 2


LAYER = ("norm linear linear linear heads heads heads attention_peaks attention_parts merge linear norm linear linear"
         " activation linear norm norm norm linear")  # fmt: skip


def prompt(program, batch: int, length: int) -> list[Tensor]:
    given = {"input_ids": torch.arange(batch * length).reshape(batch, length), "keep": torch.zeros(1)}
    given |= {"attention_mask": torch.ones(batch, length), "position_ids": torch.arange(length).expand(batch, length)}
    inputs = []
    for node in program.placeholders():
        like = node.meta["val"]
        found = given.get(node.name, torch.zeros(batch, like.shape[1], 0, like.shape[-1]) if like.dim() == 4 else None)
        inputs.append(found.to(like.dtype).contiguous())
    return inputs
