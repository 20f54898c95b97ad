"""Calibration data in each form, and what is wrong with it said with its number."""

from __future__ import annotations

import itertools

import pytest
import torch

from qpass.errors import InputError
from qpass.observe.feed import feed, from_texts, random_tokens
from tests import tiny
from tests.sites import models


def words(text):
    return {"input_ids": [ord(letter) for letter in text]}


def test_texts_become_windows():
    found = from_texts(["abc", "defgh"], words, length=4, batch=1)
    assert [batch.tolist() for batch in found] == [[[97, 98, 99, 10]], [[10, 100, 101, 102]]]


def test_random_windows_follow_the_seed():
    one, two = (from_texts("abcdefghij" * 9, words, length=5, batch=2, batches=3, seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two)) and one[0].shape == (2, 5)
    other = from_texts("abcdefghij" * 9, words, length=5, batch=2, batches=3, seed=5)
    assert not all(torch.equal(a, b) for a, b in zip(one, other))


def test_too_little_text():
    with pytest.raises(InputError, match="the texts have 3 tokens, 1 batches of 1 x 8 need 8"):
        from_texts("abc", words, length=8)


def test_random_tokens():
    found = random_tokens(7, length=50, batch=2, batches=3)
    assert len(found) == 3 and found[0].shape == (2, 50) and int(found[0].max()) < 7
    assert torch.equal(found[1], random_tokens(7, length=50, batch=2, batches=3)[1])


def test_an_endless_stream_is_read_as_far_as_asked():
    found, more = feed(tiny.raised(), (tiny.ids() for _ in itertools.count()), 3)
    assert len(found) == 3 and more
    assert feed(tiny.raised(), [tiny.ids()], 3)[1] is False


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is no calibration batch"),
        ([(tiny.ids(),), (tiny.ids(), tiny.ids())], "takes 1 flat inputs, got 2 (at calibration batch 1)"),
        ([{"ids": tiny.ids()}], "takes 1 flat inputs, got 0 (at calibration batch 0)"),
    ],
)
def test_mistakes(batches, message):
    with pytest.raises(InputError) as error:
        feed(tiny.raised(), batches, 9)
    assert message in str(error.value)


def test_a_ragged_batch_of_a_language_model():
    with pytest.raises(InputError, match="calibration batch 1"):
        feed(models.program("llama"), [torch.ones(1, 4, dtype=torch.int64), {"input_ids": [[1, 2], [3]]}], 9)


@pytest.mark.parametrize("wrong", [-1, 40])
def test_an_id_beyond_the_vocabulary_is_named(wrong):
    ids = torch.tensor([[1, 2, wrong, 3]])
    with pytest.raises(InputError) as error:
        feed(tiny.raised(), [(tiny.ids(),), (ids,)], 9)
    assert f"holds the id {wrong}, and the vocabulary has " in str(error.value)
    assert "(at calibration batch 1)" in str(error.value)
