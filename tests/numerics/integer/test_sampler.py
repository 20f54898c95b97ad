"""Embedding, logits, argmax, the generator and the sampler."""

from __future__ import annotations

import torch

from qpass.numerics.integer.dyadic import fit, fit_one
from qpass.numerics.integer.embedding import embedding
from qpass.numerics.integer.logits import argmax, logits
from qpass.numerics.integer.random import random_words, threefry
from qpass.numerics.integer.sampler import TABLE, draw, keep_top_k, keep_top_p, weights
from tests.numerics.integer.helpers import hard_rows, real, rows_of

TABLE_T = torch.tensor(TABLE, dtype=torch.int64)
LOG2E = 1.4426950408889634


def test_embedding() -> None:
    table = torch.randn(50, 16, dtype=torch.float64) * torch.exp2(torch.randn(50, 1) * 4)
    m, k = fit(table.abs().amax(1) / 32767)
    codes = torch.round(table / (m * torch.exp2(-k.double()))[:, None]).clamp(-32767, 32767).to(torch.int16)
    ids = torch.randint(0, 50, (3, 7))
    x, exponent = embedding(ids, codes, m.int(), k.int())
    assert x.dtype == exponent.dtype == torch.int32 and exponent.shape == (3, 7, 1)
    want = table[ids]
    assert float(((real(x, exponent) - want).abs() / want.abs().amax(-1, keepdim=True)).max()) <= 2.0**-15


def test_logits_fit_float32_exactly_and_argmax_takes_the_lowest_id() -> None:
    x = logits(*rows_of(hard_rows(100, 500)))[0]
    assert int(x.abs().max()) <= 2**24 and torch.equal(x.float().long(), x.long())
    ties = torch.randint(-3, 4, (2000, 40)).to(torch.int32)
    want = [row.index(max(row)) for row in ties.tolist()]
    assert argmax(ties).tolist() == want


def test_threefry_gives_the_published_words() -> None:
    def words(key: tuple[int, int], counter: tuple[int, int]) -> list[int]:
        return [int(word) for word in threefry(key, (torch.tensor(counter[0]), torch.tensor(counter[1])))]

    assert words((0, 0), (0, 0)) == [0x6B200159, 0x99BA4EFE]
    ones = 0xFFFFFFFF
    assert words((ones, ones), (ones, ones)) == [0x1CB996FC, 0xBB002BE7]
    assert words((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == [0xC4923A9C, 0x483DF7A0]


def test_words_depend_on_seed_step_row_and_copy_alone() -> None:
    whole = random_words(7, 3, 20)
    assert torch.equal(random_words(7, 3, 5), whole[:5]) and int(whole.min()) >= 0 and int(whole.max()) < 2**31
    assert not torch.equal(random_words(8, 3, 20), whole) and not torch.equal(random_words(7, 4, 20), whole)
    three = random_words(7, 3, 60, copies=3).view(20, 3)  # of prompt and copy, for any number of copies
    assert torch.equal(three[:, 0], whole) and torch.equal(random_words(7, 3, 40, copies=2).view(20, 2), three[:, :2])
    assert len(three.unique()) == 60
    many = random_words(1, 0, 1_000_000).double() / 2**31
    assert abs(float(many.mean()) - 0.5) < 5 * 12**-0.5 / 1000


def test_probabilities() -> None:
    values = torch.randn(20, 4096, dtype=torch.float64) * 3
    for temperature in (1.0, 0.7, 2.0):
        x, k = logits(*rows_of(values))
        p = weights(x, k, *fit_one(LOG2E / temperature), TABLE_T).double()
        got, want = p / p.sum(-1, keepdim=True), torch.softmax(values / temperature, -1)
        assert float((got - want).abs().sum(-1).max()) <= 4e-4


def test_top_k_and_top_p_against_lists() -> None:
    p = torch.randint(0, 1000, (50, 60))
    for row, kept in zip(p.tolist(), keep_top_k(p, 5).tolist()):
        least = sorted(row)[-5]
        assert kept == [value if value >= least else 0 for value in row]
    for row, kept in zip(p.tolist(), keep_top_p(p, int(0.6 * 65536)).tolist()):
        running, want = 0, [0] * len(row)
        for index in sorted(range(len(row)), key=lambda i: (-row[i], i)):
            if running * 65536 < int(0.6 * 65536) * sum(row):
                want[index] = row[index]
            running += row[index]
        assert kept == want


def test_draw_is_the_inverse_of_the_running_sum() -> None:
    p = torch.tensor([[0, 3, 0, 5, 2, 0]])
    seen = [int(draw(p, torch.tensor([int((n + 0.5) * 2**31 / 10)]))[0]) for n in range(10)]
    assert seen == [1, 1, 1, 3, 3, 3, 3, 3, 4, 4]
    assert int(draw(p, torch.tensor([2**31 - 1]))[0]) == 4 and int(draw(p, torch.tensor([0]))[0]) == 1
    big = torch.full((1, 200_000), 1 << 24)
    for word in (0, 12345, 2**31 - 1):
        assert int(draw(big, torch.tensor([word]))[0]) == ((200_000 << 24) * word >> 31) >> 24


def test_many_draws_follow_the_distribution() -> None:
    p = torch.tensor([1, 2, 3, 4]).expand(200_000, 4)
    counts = torch.bincount(draw(p, random_words(5, 1, 200_000)), minlength=4).double() / 200_000
    assert float((counts - torch.tensor([0.1, 0.2, 0.3, 0.4])).abs().max()) < 5 * 0.5 / 200_000**0.5
