"""Several sampled sequences for each prompt, and where the settings of sampling come from.

A float model stands for the compiled one: ``generate`` asks no more of it than its context. A compiled model draws in
``tests/passes/test_integerise.py``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import qpass
from qpass.capture.integer_generate import generate
from qpass.errors import InputError

IDS = torch.tensor([[0, 0, 7, 11, 5], [3, 9, 2, 40, 61]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # padding in front
OPTIONS = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "eos_token_id": None, "seed": 5}


class Model(LlamaForCausalLM):
    generate = generate
    _qpass_call = SimpleNamespace(context=48)


@pytest.fixture(scope="module")
def compiled() -> Model:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    return Model(LlamaConfig(**sizes, **heads)).double().eval()  # so that a batch changes no bit that counts


def sequences(compiled: Any, rows: slice = slice(2), **more: Any) -> torch.Tensor:
    return compiled.generate(IDS[rows], attention_mask=MASK[rows], **{**OPTIONS, **more})


def test_a_sequence_is_the_same_for_any_number_of_them(compiled: Any) -> None:
    """Rows of a prompt are side by side, all differ, and the first is that of one sequence a prompt."""
    three = sequences(compiled, num_return_sequences=3)
    assert three.shape == (6, 11) and torch.equal(three[:, :5], IDS.repeat_interleave(3, 0))
    by_prompt = three.view(2, 3, -1)
    assert all(len(rows.unique(dim=0)) == 3 for rows in by_prompt)
    assert torch.equal(sequences(compiled), by_prompt[:, 0])
    assert torch.equal(sequences(compiled, num_return_sequences=2).view(2, 2, -1), by_prompt[:, :2])
    assert torch.equal(sequences(compiled, slice(1), num_return_sequences=3), by_prompt[0])
    assert not torch.equal(sequences(compiled, num_return_sequences=3, seed=6), three)


def test_masks_and_positions_are_repeated(compiled: Any) -> None:
    """All sequences of a prompt start from its own logits: with no choice left they are the greedy one."""
    greedy = compiled.generate(IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(sequences(compiled, num_return_sequences=2, top_k=1), greedy.repeat_interleave(2, 0))
    ids, positions = IDS[1:], torch.arange(5)[None]
    got = compiled.generate(input_ids=ids, position_ids=positions, num_return_sequences=2, **OPTIONS)
    assert torch.equal(got, compiled.generate(ids, attention_mask=MASK[1:], num_return_sequences=2, **OPTIONS))


def test_settings_come_from_arguments_then_the_config_given_then_the_models_own(compiled: Any) -> None:
    want = sequences(compiled, num_return_sequences=2)
    options = {**OPTIONS, "eos_token_id": 999, "num_return_sequences": 2}
    seed = options.pop("seed")
    config, own = transformers.GenerationConfig(**options), compiled.generation_config
    given = {"attention_mask": MASK, "seed": seed}
    assert torch.equal(compiled.generate(IDS, config, **given), want)
    assert torch.equal(compiled.generate(IDS, config, num_return_sequences=1, **given), want[::2])
    names = ("do_sample", "temperature", "num_return_sequences")
    saved = {name: getattr(own, name) for name in names}
    try:
        for name in names:
            setattr(own, name, options[name])
        config = transformers.GenerationConfig(max_new_tokens=6, eos_token_id=999)
        assert torch.equal(compiled.generate(IDS, config, **given), want)
    finally:
        for name in names:
            setattr(own, name, saved[name])


def test_what_cannot_be_is_refused(compiled: Any) -> None:
    for count in (0, 2.5, True, 1 << 17):
        with pytest.raises(InputError, match="sequences of a prompt"):
            sequences(compiled, num_return_sequences=count)
    with pytest.raises(InputError, match="num_return_sequences 2 without a prompt"):
        compiled.generate(bos_token_id=1, num_return_sequences=2, **OPTIONS)
    with pytest.raises(ValueError, match=r"Greedy methods .* do not support `num_return_sequences`"):
        compiled.generate(IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False, num_return_sequences=2)
    scores, ids = torch.zeros(3, 8), torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(InputError, match="3 rows for 2 sequences of each prompt"):
        qpass.IntegerSampler(0, copies=2)(ids, scores)
