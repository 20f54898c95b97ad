"""The integer kernels give the bits of the ops' meanings: rows of every kind, any M, any strides, 1 and 2 threads.

The meanings are the oracle: they are checked against float64 in tests/numerics/integer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qpass import ops
from qpass.lowering.cpu import integer, kernels, kernels_integer
from qpass.numerics.integer.attention import score_room
from qpass.numerics.integer.cache import pack
from qpass.numerics.integer.dyadic import fit_one, row_of, vector
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.norm import width_root
from qpass.numerics.integer.quantize import quantize_rows

pytestmark = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
LOG2E = 1.4426950408889634
WIDTHS = (2, 16, 33, 64, 200)
PROVIDERS = integer.PROVIDERS


def hard(rows: int, width: int, seed: int = 0, top: int = 30) -> tuple[Tensor, Tensor]:
    """Rows at the edges of the format: any size from 1 to 2^top, one-sided, massive, constant, powers of two, zero."""
    make = torch.Generator().manual_seed(seed)
    size = torch.randint(0, top + 1, (rows, 1), generator=make)
    x = (torch.rand(rows, width, dtype=torch.float64, generator=make) * 2 - 1) * torch.exp2(size.double())
    x[1::7] = x[1::7].abs()
    x[2::7] = -x[2::7].abs()
    x[3::7, 0] = float(2**top)
    x[4::7, -1] = -float(2**top)
    x[5::7] = torch.exp2(size[5::7].double()) * torch.where(x[5::7] > 0, 1.0, -1.0)
    x[6::11] = 0
    if rows > 8:
        x[8] = -float(2**top)
    k = torch.randint(-140, 141, (rows, 1), generator=make)
    k[::3] = torch.randint(10, 40, k[::3].shape, generator=make)
    return x.round().to(torch.int32), k.to(torch.int32)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def same(got: object, want: object) -> None:
    got, want = ([part] if isinstance(part, Tensor) else list(part) for part in (got, want))  # type: ignore[call-overload]
    assert len(got) == len(want)
    for one, two in zip(got, want):
        assert one.dtype == two.dtype and one.shape == two.shape
        assert torch.equal(one, two), f"{int((one != two).sum())} of {one.numel()} differ"


def check(name: str, *args: object) -> None:
    """The provider of an op takes these arguments and gives the op's bits."""
    assert PROVIDERS[name].refuses(*args) is None
    same(PROVIDERS[name].call(*args), ops.REGISTRY[name].meaning(*args))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows(width: int) -> None:
    x, k = hard(200, width)
    for bits, symmetric in itertools.product((2, 4, 6, 8), (False, True)):
        check("integer_quantize", x, k, bits, symmetric)
    for bits in (4, 8):
        check("integer_pack", x, k, bits)
    check("integer_add", x, k, *hard(200, width, 1))
    near = hard(200, width, 2)[0], k + torch.randint(-3, 4, k.shape).to(torch.int32)
    check("integer_add", x, k, *near)
    check("integer_concat", x, k, *near)
    check("integer_concat", x, k, *hard(200, 3, 4))
    check("integer_scale", x, k, *_vectors(width))
    check("integer_scale", x, k, *vector(torch.tensor([-0.3], dtype=torch.float64)))
    check("integer_logits", x, k)
    check("integer_merge_heads", x.reshape(25, 8, width), k.reshape(25, 8, 1))


def _vectors(width: int) -> tuple[Tensor, Tensor, Tensor]:
    return vector(torch.randn(width, dtype=torch.float64) * torch.exp2(torch.randint(-20, 3, (width,)).double()))


@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int) -> None:
    x, k = hard(200, width)
    for eps in (1e-5, 1e-12, 1.0, 0.0):
        constants = (*fit_one(width * eps), "precise")
        check("integer_rms_norm", x, k, *_vectors(width), *constants)
        check("integer_rms_norm", x, k, None, None, None, *constants)
        bias = row_of(torch.randn(width, dtype=torch.float64))
        check("integer_layer_norm", x, k, *_vectors(width), *bias, *constants)
        check("integer_layer_norm", x, k, *_vectors(width), None, None, *constants)


@pytest.mark.parametrize("kind", list(integer.KINDS))
def test_activations(kind: str) -> None:
    one = vector(torch.tensor([LOG2E], dtype=torch.float64))
    for width in WIDTHS:
        each = vector(torch.rand(width, dtype=torch.float64) * 4 + 0.1)
        for (x, k), v in itertools.product((hard(200, width), hard(200, width, 3, 28)), (one, each)):
            check("integer_activation", x, k, kind, *v, TABLE_T, "precise")
            check("integer_gated", x, k, *hard(200, width, 4), kind, *v, TABLE_T, "precise")


def test_rows_that_rounding_brings_to_the_next_bit() -> None:
    x = torch.tensor([[(1 << 30) - 1, 5], [(1 << 29) - 1, -7], [1 - (1 << 30), 1 << 20]], dtype=torch.int32)
    k, one = torch.full((3, 1), 27, dtype=torch.int32), vector(torch.tensor([LOG2E], dtype=torch.float64))
    for kind in integer.KINDS:
        check("integer_activation", x, k, kind, *one, TABLE_T, "precise")
        check("integer_gated", x, k, x.flip(0), k, kind, *one, TABLE_T, "precise")
    check("integer_scale", x, k, *one)
    check("integer_concat", x, k, x.flip(0), k + 1)


def test_every_quotient_of_the_sigmoid() -> None:
    """2^-z takes every value 0 to 2^15 that it can, on both branches: z = 0 to 17 octaves in steps of 2^-15."""
    z = torch.arange(0, 17 << 15, 5, dtype=torch.int64)
    x = torch.cat([z, -z])[None].to(torch.int32) << 9
    x = torch.cat([x, x.new_full((1, 1), 1 << 28)], 1)
    one = vector(torch.tensor([1.0], dtype=torch.float64))
    for k in (24, 23, 25):
        check("integer_activation", x, torch.full((1, 1), k, dtype=torch.int32), "silu", *one, TABLE_T, "precise")


def test_strides_and_broadcasting() -> None:
    x, k = hard(2 * 5 * 3, 32)
    heads = x.reshape(2, 5, 3, 32).transpose(1, 2)
    shared = k[:10].reshape(2, 5, 1, 1).transpose(1, 2)
    cos, sin = (torch.randint(-(2**14), 2**14 + 1, (2, 1, 5, 32)).to(torch.int16) for _ in range(2))
    check("integer_rotary", heads, shared, cos, sin)
    check("integer_pack", heads, shared, 8)
    check("integer_quantize", heads, shared, 8, True)
    check("integer_merge_heads", heads.transpose(1, 2), k.reshape(2, 5, 3, 1))
    check("integer_merge_heads", x.reshape(3, 5, 2, 32).permute(1, 0, 2, 3), k.reshape(3, 5, 2, 1).permute(1, 0, 2, 3))
    deep = x.reshape(1, 2, 5, 3, 1, 32).transpose(1, 2)
    check("integer_quantize", deep, k.reshape(1, 2, 5, 3, 1, 1).transpose(1, 2), 8, False)
    check("integer_quantize", x[:0], k[:0], 8, False)
    wide = torch.cat([x, x], 1)[:, ::2]
    check("integer_rms_norm", wide, k, None, None, None, *fit_one(1e-5), "precise")


def test_joined_operators_are_their_parts() -> None:
    op, (x, k), (y, ky) = torch.ops.qpass_cpu, hard(120, 48), hard(120, 48, 5)
    w, bias = _vectors(48), row_of(torch.randn(48, dtype=torch.float64))
    heads, hk = x.reshape(10, 3, 4, 48), k.reshape(10, 3, 4, 1)
    angles = tuple(torch.randint(-(2**14), 2**14 + 1, (10, 1, 4, 48)).to(torch.int16) for _ in range(2))
    gate = (1, *vector(torch.tensor([LOG2E], dtype=torch.float64)), TABLE_T)
    for (bits, symmetric), center in itertools.product(((8, False), (8, True), (4, False)), (0, 1)):
        norm = (*w, *(bias if center else (None, None)), [*fit_one(48e-5), *width_root(48), center])

        def codes(rows: tuple[Tensor, Tensor], form: tuple[int, bool] = (bits, symmetric)) -> tuple[Tensor, ...]:
            return op.integer_quantize(*rows, *form)

        form = (bits, symmetric)
        same(op.integer_norm_quantize(x, k, *norm, *form), codes(op.integer_norm(x, k, *norm)))
        total = op.integer_add(x, k, y, ky)
        want = *total, *codes(op.integer_norm(*total, *norm))
        same(op.integer_add_norm_quantize(x, k, y, ky, *norm, *form), want)
        same(op.integer_gated_quantize(x, k, y, ky, *gate, *form), codes(op.integer_gated(x, k, y, ky, *gate)))
        same(op.integer_activation_quantize(x, k, *gate, *form), codes(op.integer_activation(x, k, *gate)))
        same(op.integer_merge_heads_quantize(heads, hk, *form), codes(op.integer_merge_heads(heads, hk)))
        same(op.integer_rotary_quantize(heads, hk, *angles, *form), codes(op.integer_rotary(heads, hk, *angles)))
        same(op.integer_rotary_pack(heads, hk, *angles, 8), op.integer_pack(*op.integer_rotary(heads, hk, *angles), 8))


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 32, 64), (3, 33, 5), (9, 200, 130), (37, 70, 256), (0, 32, 32)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_linear(rows: int, n: int, k: int, symmetric: bool) -> None:
    codes = torch.randint(-128 if not symmetric else -127, 128, (rows, k)).to(torch.int8)
    weight = torch.randint(-128, 128, (n, k)).to(torch.int8)
    if rows > 1:
        codes[0], weight[0] = 127, -128  # the largest sums
        codes[1], weight[1] = -128 + symmetric, 127
    zero = None if symmetric else torch.randint(-128, 128, (rows, 1)).to(torch.int32)
    m, e = (torch.randint(low, high, (rows, 1)).to(torch.int32) for low, high in ((1 << 14, 1 << 15), (-20, 40)))
    sums = weight.sum(1, dtype=torch.int32)
    up = 30 - (k * 255 * 128 - 1).bit_length()
    scale = _vectors(n)
    for bias in ((None, None), row_of(torch.randn(n, dtype=torch.float64))):
        args = (codes, zero, m, e, weight, *scale, None if symmetric else sums, *bias, up)
        want = ops.REGISTRY["integer_linear"].meaning(*args) if rows else (torch.empty(0, n), e)
        table = kernels_integer.pack_table(kernels.BLOCK, *scale, sums, *(bias if bias[0] is not None else ()))
        got = PROVIDERS["integer_linear"].call(*args, packed=kernels.pack_int8_weight(weight), table=table)
        same(got, want) if rows else same([got[0].float(), got[1]], want)


def _weight(n: int, k: int, biased: bool) -> tuple[Tensor, Tensor, int, int]:
    """Packed codes, table, up and n of a random weight."""
    weight = torch.randint(-127, 128, (n, k)).to(torch.int8)
    bias = row_of(torch.randn(n, dtype=torch.float64)) if biased else ()
    sums = weight.sum(1, dtype=torch.int32)
    table = kernels_integer.pack_table(kernels.BLOCK, *_vectors(n), sums, *bias)
    return kernels.pack_int8_weight(weight), table, 30 - (k * 255 * 128 - 1).bit_length(), n


def _codes(shape: tuple[int, ...], width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, k = hard(torch.Size(shape).numel(), width)
    return tuple(part.reshape(*shape, -1) for part in quantize_rows(x, k % 40, 8, False))  # type: ignore[return-value]


# rows: one, some, more than a part; channels that are no multiple of a block; many parts of few channels
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 64, 64), (5, 33, 18), (70, 48, 4), (517, 40, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_linears_of_the_same_rows_and_what_is_behind_them(rows: int, n: int, k: int, biased: bool) -> None:
    op, codes = torch.ops.qpass_cpu, _codes((rows,), k)
    one, two, three = (_weight(width, k, biased) for width in (n, n, n + 7))
    parts = [part for weight in (one, two, three) for part in op.integer_linear(*codes, *weight)]
    same(op.integer_linears(*codes, *map(list, zip(one, two, three))), parts)
    gate = (1, *vector(torch.tensor([LOG2E], dtype=torch.float64)), TABLE_T)
    each = (1, *vector(torch.rand(n, dtype=torch.float64) + 0.1), TABLE_T)
    x, kx = hard(rows, n, 7)
    for form, center in itertools.product(((8, False), (4, True)), (0, 1)):
        norm = (*_vectors(n), None, None, [*fit_one(n * 1e-5), *width_root(n), center])
        got = op.integer_linear_add_norm_quantize(*codes, *one, x, kx, *norm, *form)
        same(got, op.integer_add_norm_quantize(*parts[:2], x, kx, *norm, *form))
        kind = each if center else gate
        got = op.integer_linears_gated_quantize(*codes, *map(list, zip(one, two)), *kind, *form)
        same(got, op.integer_gated_quantize(*parts[:4], *kind, *form))


@pytest.mark.parametrize(("batch", "length", "past"), [(1, 1, 9), (2, 5, 0), (1, 40, 3)])
def test_queries_keys_and_values_in_one_call(batch: int, length: int, past: int) -> None:
    op, codes, d, dv = torch.ops.qpass_cpu, _codes((batch, length), 32), 12, 8
    weights = [_weight(width, 32, width == 4 * d) for width in (4 * d, 2 * d, 2 * dv)]
    keys, values = (torch.randint(-128, 128, (batch, 2, past, width + 2)).to(torch.int8) for width in (d, dv))
    angles = tuple(torch.randint(-(2**14), 2**14 + 1, (batch, 1, length, d)).to(torch.int16) for _ in range(2))
    (q, qk), (k, kk), (v, vk) = (op.integer_linear(*codes, *weight) for weight in weights)

    def by_heads(x: Tensor, width: int) -> Tensor:
        return x.view(batch, length, -1, width).transpose(1, 2)

    turned = op.integer_rotary_quantize(by_heads(q, d), by_heads(qk, 1), *angles, 8, True)
    want = [turned[0], *turned[2:], op.integer_rotary_append(by_heads(k, d), by_heads(kk, 1), *angles, 8, keys),
            op.integer_append(by_heads(v, dv), by_heads(vk, 1), 6, values)]  # fmt: skip
    same(op.integer_linears_heads(*codes, *map(list, zip(*weights)), *angles, 8, 8, 6, keys, values), want)


def test_attention_as_codes() -> None:
    for shape, form in itertools.product(SHAPES[:3], ((8, False), (4, True))):
        args = (*_attention_args(shape, 1), None, False, TABLE_T, *fit_one(0.3), 2, 0)
        x, k = torch.ops.qpass_cpu.integer_attention(*args)
        want = torch.ops.qpass_cpu.integer_merge_heads_quantize(x.transpose(1, 2), k.transpose(1, 2), *form)
        same(torch.ops.qpass_cpu.integer_attention_quantize(*args, *form), want)


def test_shapes_for_the_compiler() -> None:
    """What the operators tell the compiler of their results is what they give."""
    op, codes = torch.ops.qpass_cpu, _codes((2, 3), 16)
    one, two = _weight(24, 16, True), _weight(24, 16, False)
    pair, three = list(map(list, zip(one, two))), list(map(list, zip(one, two, two)))
    x, k = op.integer_linear(*codes, *one)
    past, angles = torch.zeros(2, 2, 4, 14, dtype=torch.int8), (torch.zeros(2, 1, 3, 12, dtype=torch.int16),) * 2
    norm = (None, None, None, None, None, [*fit_one(24e-5), *width_root(24), 0])
    attention = (*_attention_args(SHAPES[0], 1), None, False, TABLE_T, 16384, 15, 2, 0, 8, False)
    for call, args in (
        (op.integer_linears, (*codes, *pair)),
        (op.integer_linears_gated_quantize, (*codes, *pair, 0, *_vectors(1), TABLE_T, 8, False)),
        (op.integer_linear_add_norm_quantize, (*codes, *one, x, k, *norm, 8, False)),
        (op.integer_linears_heads, (*codes, *three, *angles, 8, 8, 8, past, past)),
        (op.integer_attention_quantize, attention),
    ):
        torch.library.opcheck(call.default, args, test_utils="test_faketensor")
    with pytest.raises(RuntimeError, match="a table of 5"):
        op.integer_linear(*codes, one[0], one[1][:5], *one[2:])
    with pytest.raises(RuntimeError, match="2 weights, 1 tables"):
        op.integer_linears(*codes, pair[0], pair[1][:1], *pair[2:])


SHAPES = [  # batch, query heads, key heads, queries, keys, d, dv
    (1, 4, 2, 1, 130, 64, 64), (2, 4, 4, 7, 7, 32, 32), (1, 6, 2, 33, 50, 80, 96), (1, 2, 1, 3, 3, 4, 2),
    (2, 3, 1, 19, 64, 128, 128), (1, 1, 1, 1, 1, 8, 8), (1, 2, 2, 100, 100, 16, 20), (1, 1, 1, 2, 40, 256, 64),
]  # fmt: skip


def _attention_args(shape: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    batch, heads, key_heads, queries, length, d, dv = shape
    torch.manual_seed(seed)
    q, q_k = hard(batch * heads * queries, d, seed)
    codes, _, m, k = quantize_rows(q, 20 + q_k % 8, 8, True)
    caches = []
    for width in (d, dv):
        x, _ = hard(batch * key_heads * length, width, seed + width)
        spread = torch.randint(18, 31 if seed else 60, (x.shape[0], 1)).to(torch.int32)
        caches.append(pack(x, spread).reshape(batch, key_heads, length, width + 2))
    shaped = (part.reshape(batch, heads, queries, -1) for part in (codes, m, k))
    return (*shaped, *caches)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...]) -> None:
    queries, length = shape[3], shape[4]
    masks: list[tuple[Tensor | None, bool]] = [
        (None, False),
        (torch.ones(queries, length, dtype=torch.bool).tril(length - queries)[None, None], False),
        (torch.rand(shape[0], 1, queries, length) < 0.4, False),
        (torch.zeros(1, 1, queries, length, dtype=torch.bool), False),
    ]
    if queries == length:
        masks += [(None, True), (torch.rand(shape[0], 1, queries, length) < 0.7, True)]
    for seed, (keep, causal), clip in itertools.product((0, 1), masks, (0, 250000)):
        args = _attention_args(shape, seed)
        for scale in (shape[5] ** -0.5, 30.0):
            check("integer_attention", *args, keep, causal, TABLE_T, *fit_one(LOG2E * scale), 8, clip, "precise")


def test_attention_reads_any_strides() -> None:
    q, m, k, keys, values = _attention_args((2, 4, 2, 5, 24, 32, 32), 1)
    mixed = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (q, m, k, keys, values)]
    mask = (torch.rand(2, 1, 24, 5) < 0.6).transpose(2, 3)
    check("integer_attention", *mixed, mask, False, TABLE_T, *fit_one(0.3), 8, 0, "precise")


def test_cache() -> None:
    past, new = (torch.randint(-128, 128, shape).to(torch.int8) for shape in ((2, 3, 50, 10), (2, 3, 4, 10)))
    check("cache_update", past, new)
    check("cache_update", past[:, :, :0], new)
    check("cache_update", past[:, :, ::2, :6], new.transpose(1, 2).contiguous().transpose(1, 2)[..., :6])
    assert PROVIDERS["cache_update"].refuses(past.float(), new.float()) == ""


def test_rows_behind_a_cache() -> None:
    op, (x, k) = torch.ops.qpass_cpu, hard(2 * 3 * 4, 8)
    heads, hk = x.reshape(2, 4, 3, 8).transpose(1, 2), k.reshape(2, 4, 3, 1).transpose(1, 2)
    angles = tuple(torch.randint(-(2**14), 2**14 + 1, (2, 1, 4, 8)).to(torch.int16) for _ in range(2))
    for rows in (0, 5):
        past = torch.randint(-128, 128, (2, 3, rows, 10)).to(torch.int8)
        same(op.integer_append(heads, hk, 8, past), torch.cat([past, op.integer_pack(heads, hk, 8)], 2))
        turned = op.integer_rotary_pack(heads, hk, *angles, 6)
        same(op.integer_rotary_append(heads, hk, *angles, 6, past), torch.cat([past, turned], 2))
    with pytest.raises(RuntimeError, match="past must have shape"):
        op.integer_append(heads, hk, 8, past[:, :2])


def test_attention_of_saturated_codes() -> None:
    """All codes at their ends and all weights equal: the largest sums that there are."""
    q = torch.full((1, 1, 2, 64), 127, dtype=torch.int8)
    q[..., 1, :] = -127
    keys = torch.full((1, 1, 3000, 66), 127, dtype=torch.int8)
    values = keys.clone()
    keys[..., -2], keys[..., -1], values[..., -2], values[..., -1] = 63, 20, 63, 20
    values[:, :, ::2, :-2] = -128
    m, k = torch.full((1, 1, 2, 1), 32767, dtype=torch.int32), torch.full((1, 1, 2, 1), 30, dtype=torch.int32)
    for values_ in (values, keys):
        check("integer_attention", q, m, k, keys, values_, None, False, TABLE_T, *fit_one(0.18), 8, 0, "precise")
    assert score_room(64, 8) == 1


def test_what_a_kernel_does_not_take() -> None:
    x, k = hard(4, 8)
    refuses = {name: provider.refuses for name, provider in PROVIDERS.items()}
    assert "not paper" in str(refuses["integer_rms_norm"](x, k, None, None, None, 1, 1, "paper"))
    assert "40000" in str(refuses["integer_rms_norm"](x.new_zeros(1, 40000), k, None, None, None, 1, 1, "precise"))
    assert "neighbors" in str(refuses["integer_rotary"](x, k, x.short(), x.short(), True))
    assert "int16" in str(refuses["integer_rotary"](x, k, x, x))
    assert "has no tanh" in str(refuses["integer_activation"](x, k, "tanh", "precise"))
    assert "15 bits, not 8" in str(refuses["integer_quantize"](x, k, 8, True, 8))
    assert "not paper" in str(refuses["integer_quantize"](x, k, 8, True, 15, "paper"))
    assert "two channels" in str(refuses["integer_merge_heads"](x[..., :1], k))
    with pytest.raises(RuntimeError, match="must be Int"):
        torch.ops.qpass_cpu.integer_quantize(x.float(), k, 8, True)
    with pytest.raises(RuntimeError, match="9 bits"):
        torch.ops.qpass_cpu.integer_quantize(x, k, 9, True)
    with pytest.raises(RuntimeError, match="rows of"):
        torch.ops.qpass_cpu.integer_add(x, k, x[:2], k[:2])


def test_without_the_instructions_the_meaning_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "this CPU lacks avx512_vnni")
    x, k = hard(2, 8)
    assert PROVIDERS["integer_quantize"].refuses(x, k, 8, True) == "this CPU lacks avx512_vnni"
    assert PROVIDERS["integer_linear"].refuses() == "this CPU lacks avx512_vnni"
    assert PROVIDERS["integer_rms_norm"].refuses(x, k, None, None, None, 1, 1, "precise") is not None


def test_a_norm_of_another_mode_says_which() -> None:
    x, k, channels = (torch.zeros(shape, dtype=torch.int32) for shape in ((2, 8), (2, 1), (4, 8)))
    reason = integer.PROVIDERS["integer_rms_norm"].refuses(x, k, None, None, None, 1, 1, "paper", channels)
    assert reason == "it computes mode precise, not paper"
