"""generate() and forward() of the rebuilt causal LM behave as those of the float model."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from qpass.capture.cache_name import usual_name
from qpass.capture.interface import rebuild
from qpass.errors import InputError, UnsupportedError

from .models import causal_lm

THREE = ["llama", "opt", "mistral"]


def _batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, :3] = 0
    return {"input_ids": torch.randint(2, 250, (2, 7)), "attention_mask": mask}


@pytest.mark.parametrize("family", THREE)
@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": True, "temperature": 1.3, "top_k": 50},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "repetition_penalty": 1.5, "prefill_chunk_size": 4},
    ],
    ids=lambda mode: "-".join(mode),
)
def test_tokens_equal_the_float_model(captured: Any, family: str, mode: dict[str, Any]) -> None:
    model, rebuilt, _ = captured(family)
    batch, results = _batch(), []
    for each in (model, rebuilt):
        torch.manual_seed(3)
        results.append(each.generate(**batch, max_new_tokens=11, **mode))
    assert torch.equal(*results)


@pytest.mark.parametrize("prompt", [1, 2, 3])
def test_short_prompts_without_a_mask(captured: Any, prompt: int) -> None:
    model, rebuilt, _ = captured("llama")
    ids = torch.randint(2, 250, (1, prompt))
    want = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(rebuilt.generate(ids, max_new_tokens=8, do_sample=False), want)


def test_continue_from_a_returned_cache_and_assisted_decoding(captured: Any) -> None:
    model, rebuilt, _ = captured("llama")
    ids, results = torch.randint(2, 250, (1, 6)), []
    for each in (model, rebuilt):
        cache = DynamicCache()
        first = each.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
        results.append(each.generate(first, past_key_values=cache, max_new_tokens=4, do_sample=False))
        results.append(each.generate(ids, prompt_lookup_num_tokens=2, max_new_tokens=8, do_sample=False))
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_the_users_interface_stays(captured: Any) -> None:
    model, rebuilt, _ = captured("llama")
    assert isinstance(rebuilt, LlamaForCausalLM) and isinstance(rebuilt, PreTrainedModel)
    assert rebuilt.config.to_dict() == model.config.to_dict() and rebuilt.config is not model.config
    assert isinstance(rebuilt.generation_config, GenerationConfig)
    assert inspect.signature(rebuilt.forward) == inspect.signature(model.forward)
    assert rebuilt.device == torch.device("cpu") and rebuilt.dtype == torch.float32
    assert rebuilt.num_parameters() == model.num_parameters() and rebuilt.num_parameters(only_trainable=True) == 0
    smaller = model.num_parameters(exclude_embeddings=True)
    assert rebuilt.num_parameters(exclude_embeddings=True) == smaller < model.num_parameters()
    assert rebuilt._qpass_compiled and not rebuilt.training and rebuilt.eval() is rebuilt


def test_state_is_the_runners(captured: Any) -> None:
    _, rebuilt, _ = captured("llama")
    assert list(rebuilt.named_parameters()) == []
    state = rebuilt._qpass_runner.state_dict()
    assert list(rebuilt.state_dict()) == list(state) and all(rebuilt.state_dict()[k] is not None for k in state)
    with pytest.raises(UnsupportedError, match="not a transformers checkpoint"):
        rebuilt.save_pretrained("nowhere")


def test_it_keeps_no_weight_of_the_original_alive(captured: Any) -> None:
    class Nothing(nn.Module):
        def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return flat

    model = causal_lm("llama")
    watched = [weakref.ref(parameter) for parameter in model.parameters()] + [weakref.ref(model)]
    rebuilt = rebuild(model, captured("llama")[2].call, Nothing())
    del model
    gc.collect()
    assert [ref for ref in watched if ref() is not None] == []
    assert rebuilt.num_parameters() > 0


def test_forward_variants(captured: Any) -> None:
    model, rebuilt, _ = captured("llama")
    batch = _batch()
    want = model(**batch)
    got = rebuilt(**batch)
    assert type(got) is CausalLMOutputWithPast and isinstance(got.past_key_values, DynamicCache)
    assert torch.equal(rebuilt(batch["input_ids"], batch["attention_mask"]).logits, got.logits)
    assert rebuilt(**batch, use_cache=False).past_key_values is None
    for keep in (1, 3, 100, torch.tensor([0, 5])):
        assert torch.equal(rebuilt(**batch, logits_to_keep=keep).logits, model(**batch, logits_to_keep=keep).logits)
    as_tuple = rebuilt(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], got.logits) and len(as_tuple) == 2
    assert torch.equal(rebuilt(batch["input_ids"], attention_mask=batch["attention_mask"].bool()).logits, got.logits)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert torch.allclose(rebuilt(**batch, labels=labels).loss, model(**batch, labels=labels).loss, rtol=0, atol=1e-6)
    count = torch.tensor(5.0)
    ours, theirs = (m(**batch, labels=labels, num_items_in_batch=count).loss for m in (rebuilt, model))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0) and want.loss is None


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_inner_values_are_refused(captured: Any, name: str) -> None:
    _, rebuilt, _ = captured("llama")
    text = f"`{name}=True` asks for values inside the model, which the compiled graph does not return."
    with pytest.raises(UnsupportedError, match=text):
        rebuilt(**_batch(), **{name: True})
    rebuilt(**_batch(), **{name: False})


def test_bad_calls_say_what_was_expected(captured: Any) -> None:
    _, rebuilt, _ = captured("llama")
    ids = torch.randint(2, 250, (2, 7))
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UnsupportedError, "does not take `inputs_embeds`. Fix: pass input_ids",
         {"inputs_embeds": torch.ones(1, 2, 64)}),
        (InputError, "`input_ids` is NoneType, it must be int64[batch, seq]", {}),
        (InputError, "`attention_mask` has shape [2, 6], expected [2, 7] (batch, 0 past + 7 new tokens)",
         {"input_ids": ids, "attention_mask": torch.ones(2, 6)}),
        (UnsupportedError, "`attention_mask` is a tensor of 4 dims",
         {"input_ids": ids, "attention_mask": torch.ones(2, 1, 7, 7)}),
        (InputError, "`position_ids` has shape [2, 3], expected [2, 7]",
         {"input_ids": ids, "position_ids": ids[:, :3]}),
        (InputError, "`input_ids` is int64[2, 0]", {"input_ids": ids[:, :0]}),
        (InputError, "`logits_to_keep` has shape [1, 1], expected [keep]",
         {"input_ids": ids, "logits_to_keep": torch.tensor([[1]])}),
    ]  # fmt: skip
    for kind, text, call in cases:
        with pytest.raises(kind) as error:
            rebuilt(**call)
        assert text in str(error.value)
    with pytest.raises(InputError, match="The call does not fit the model's forward"):
        rebuilt(ids, input_ids=ids)


def test_other_caches_are_refused(captured: Any) -> None:
    model, rebuilt, _ = captured("mistral")
    ids = torch.randint(2, 250, (1, 12))
    static = StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(UnsupportedError, match=f"`{usual_name()}` is a StaticCache"):
        rebuilt(ids, past_key_values=static)
    with pytest.raises(UnsupportedError, match=f"`{usual_name()}` is a StaticCache"):
        rebuilt.generate(ids, cache_implementation="static", max_new_tokens=2)
    cut = model(ids, past_key_values=DynamicCache(config=model.config)).past_key_values
    with pytest.raises(UnsupportedError, match="already cut to a sliding window, 7 of 12 tokens"):
        rebuilt(ids[:, :1], past_key_values=cut)


def test_the_cache_goes_by_the_name_of_the_installed_transformers(captured: Any) -> None:
    model, rebuilt, _ = captured("llama")
    ids, name = torch.randint(2, 250, (1, 5)), usual_name()
    assert name in inspect.signature(rebuilt.forward).parameters
    firsts = [each(ids[:, :4], **{name: DynamicCache()})[name] for each in (model, rebuilt)]
    want, got = (each(ids[:, 4:], **{name: past}) for each, past in zip((model, rebuilt), firsts))
    torch.testing.assert_close(got.logits, want.logits)
    assert got[name] is firsts[1] and firsts[1].get_seq_length() == 5
    if name == "past_key_values":
        with pytest.raises(UnsupportedError, match="does not take `cache`"):
            rebuilt(ids, cache=DynamicCache())
    else:
        with pytest.raises(InputError, match="which are one argument"):
            rebuilt(ids, cache=DynamicCache(), past_key_values=DynamicCache())


def test_it_does_not_train_move_or_cast(captured: Any) -> None:
    _, rebuilt, _ = captured("llama")
    assert rebuilt.to("cpu") is rebuilt and rebuilt.cpu() is rebuilt and rebuilt.float() is rebuilt
    with pytest.raises(InputError, match=r"cannot be put into training mode\. Fix: train the float model"):
        rebuilt.train()
    with pytest.raises(UnsupportedError, match=r"cannot be moved from cpu to meta.*compile the float model again"):
        rebuilt.to("meta")
    for cast in (lambda: rebuilt.half(), lambda: rebuilt.to(torch.bfloat16)):
        with pytest.raises(UnsupportedError, match=r"cannot be cast from torch.float32 to torch\.(float16|bfloat16)"):
            cast()


def test_deepcopy(captured: Any) -> None:
    _, rebuilt, _ = captured("llama")
    twin = copy.deepcopy(rebuilt)
    batch = _batch()
    assert torch.equal(twin(**batch).logits, rebuilt(**batch).logits)
    assert twin._qpass_runner is not rebuilt._qpass_runner


def test_bfloat16_weights_and_cache() -> None:
    from .models import float_copy

    model = causal_lm("llama", torch.bfloat16)
    rebuilt, found = float_copy(model)
    assert found.call.kv[0].dtype == rebuilt.dtype == torch.bfloat16
    batch = _batch()
    assert torch.equal(rebuilt(**batch).logits, model(**batch).logits)
