"""Rotary embedding, cache, scores with a scale a key, values with a scale a value, masks, groups."""

from __future__ import annotations

import pytest
import torch

from qpass.errors import UnsupportedError
from qpass.numerics.integer.attention import attention, score_room
from qpass.numerics.integer.cache import pack, unpack
from qpass.numerics.integer.dyadic import fit_one
from qpass.numerics.integer.exp2 import TABLE
from qpass.numerics.integer.quantize import quantize_rows
from qpass.numerics.integer.rotary import rotary
from qpass.numerics.integer.softmax import softmax_numerators
from tests.numerics.integer.helpers import hard_rows, real, rel_rms, rows_of

TABLE_T = torch.tensor(TABLE, dtype=torch.int32)
LOG2E = 1.4426950408889634


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved: bool) -> None:
    x, width = hard_rows(2000, 128)[:-3].reshape(1, 1, -1, 128), 128
    angle = torch.arange(x.shape[2])[:, None] * 1e4 ** (-torch.arange(0, width, 2).double() / width)
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    cos, sin = angle.cos(), angle.sin()
    tables = [torch.round(part * 2**14).to(torch.int16) for part in (cos, sin)]
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) if interleaved else torch.cat(
        (-x[..., 64:], x[..., :64]), -1)  # fmt: skip
    y, k = rotary(*rows_of(x), *tables, interleaved)
    assert rel_rms(real(y, k), x * cos + turned * sin) <= 2e-4 and int(y.abs().max()) <= 2**30


def test_cache_holds_codes_and_scale() -> None:
    values = hard_rows(300, 64)
    codes, m, k = unpack(pack(*rows_of(values)))
    assert int(m.min()) >= 128 and int(m.max()) <= 255
    scale = m.double() * torch.exp2(-k.double())
    assert float(((codes * scale - values).abs() / scale)[:-1].max()) <= 0.5 + 127 * (2.0**-16 + 2.0**-15)
    assert pack(*rows_of(values)).dtype == torch.int8 and bool((codes[-1] == 0).all())


@pytest.mark.parametrize("length", [64, 512, 2048])
def test_softmax_probabilities(length: int) -> None:
    values = torch.randn(200, length, dtype=torch.float64) * 3
    scale = 2.0**-20
    c, k = (torch.full((200, 1), part, dtype=torch.int32) for part in fit_one(LOG2E * scale))
    whole = torch.round(values / scale).to(torch.int32)
    e = softmax_numerators(whole, torch.ones_like(whole, dtype=torch.bool), c, k, TABLE_T)
    got, want = e.double() / e.sum(-1, keepdim=True), torch.softmax(values, -1)
    distance = (got - want).abs()
    assert float(distance.max()) <= 3e-3 and float(distance.sum(-1).mean()) <= 6e-3
    # each e is off by its rounding, half a unit, and the table's 1.1e-4 of itself; normalizing at most doubles the sum
    assert bool((distance.sum(-1) <= 2 * (0.5 * length / e.sum(-1) + 1.1e-4)).all())
    order = values.argsort(-1)
    assert bool((e.gather(-1, order).diff(dim=-1) >= 0).all()), "a smaller score has a larger probability"
    clipped = softmax_numerators(whole, torch.ones_like(whole, dtype=torch.bool), c, k, TABLE_T, int(5 * LOG2E * 2**15))
    gone = values < values.amax(-1, keepdim=True) - 5.001
    assert bool((clipped[gone] == 0).all()) and torch.equal(clipped[values > values.amax(-1, keepdim=True) - 4.999],
                                                           e[values > values.amax(-1, keepdim=True) - 4.999])


def _inputs(heads: int, kv: int, rows: int, length: int, width: int) -> tuple[torch.Tensor, ...]:
    q = torch.randn(2, heads, rows, width, dtype=torch.float64) * 1.5
    k = torch.randn(2, kv, length, width, dtype=torch.float64) * 1.5
    v = torch.randn(2, kv, length, width, dtype=torch.float64) * torch.exp(torch.randn(2, kv, length, 1) * 0.5)
    k[:, :, 0] *= 8
    v[:, :, 0] *= 0.05  # a sink: a large key with a small value
    return q, k, v


def _decoded(cache: torch.Tensor) -> torch.Tensor:
    codes, m, k = unpack(cache)
    return codes.double() * m * torch.exp2(-k.double())


def _run(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, ...]:
    codes, _, m, k = quantize_rows(*rows_of(q))
    scale = q.shape[-1] ** -0.5
    return attention(codes, m, k, keys, values, keep, TABLE_T, *fit_one(LOG2E * scale))


def _causal(rows: int, length: int) -> torch.Tensor:
    return torch.ones(rows, length, dtype=torch.bool).tril(length - rows)[None, None]


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_attention_of_the_same_codes(heads: tuple[int, int]) -> None:
    q, k, v = _inputs(*heads, 96, 130, 64)
    keys, values, keep = pack(*rows_of(k)), pack(*rows_of(v)), _causal(96, 130)
    got = real(*_run(q, keys, values, keep))
    codes, _, m, exponent = quantize_rows(*rows_of(q))
    again = [part.repeat_interleave(heads[0] // heads[1], 1) for part in (_decoded(keys), _decoded(values))]
    q8 = codes.double() * m * torch.exp2(-exponent.double())
    p = torch.softmax((q8 @ again[0].transpose(-1, -2) / 8).masked_fill(~keep, -torch.inf), -1)
    want = p @ again[1]
    assert rel_rms(got, want) <= 0.003
    assert max(rel_rms(got[:, :, row], want[:, :, row]) for row in (0, 50, 95)) <= 0.003


def test_what_is_masked_is_as_if_it_were_not_there() -> None:
    q, k, v = _inputs(4, 2, 40, 40, 32)
    keys, values = pack(*rows_of(k)), pack(*rows_of(v))
    whole = _run(q, keys, values, _causal(40, 40))
    for row in (0, 1, 17, 39):  # prefill = decode: nothing later is there yet
        alone = _run(q[:, :, row : row + 1], keys[:, :, : row + 1], values[:, :, : row + 1], _causal(1, row + 1))
        assert all(torch.equal(one, two[:, :, row : row + 1]) for one, two in zip(alone, whole))
    padded = torch.cat([torch.randint(-128, 128, (2, 2, 7, 34)).to(torch.int8), keys], 2)
    padded[:, :, :7, -1] = -100  # an exponent that would win if it were looked at
    keep = torch.cat([torch.zeros(1, 1, 40, 7, dtype=torch.bool), _causal(40, 40)], -1)
    shifted = _run(q, padded, torch.cat([values[:, :, :7] * 0 - 99, values], 2), keep)
    assert all(torch.equal(one, two) for one, two in zip(shifted, whole))
    assert all(torch.equal(one[:1], two) for one, two in zip(whole, _run(q[:1], keys[:1], values[:1], _causal(40, 40))))
    nothing = _run(q, keys, values, torch.zeros(1, 1, 40, 40, dtype=torch.bool))
    assert bool((nothing[0] == 0).all())


def test_grouped_heads_are_repeated_heads() -> None:
    q, k, v = _inputs(8, 2, 12, 12, 32)
    keys, values = pack(*rows_of(k)), pack(*rows_of(v))
    repeated = _run(q, keys.repeat_interleave(4, 1), values.repeat_interleave(4, 1), _causal(12, 12))
    assert all(torch.equal(one, two) for one, two in zip(_run(q, keys, values, _causal(12, 12)), repeated))


def test_width_of_a_head() -> None:
    assert score_room(128, 8) == 0 and score_room(32, 8) == 2 and score_room(256, 8) == -1
    with pytest.raises(UnsupportedError, match="a head of 600 channels"):
        score_room(600, 8)
