"""The measuring functions, against loops written out by hand."""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpass import assets
from qpass.debug import evaluate
from qpass.errors import InputError, NumericsError


class Letters:
    """A tokenizer: one token a character."""

    def __call__(self, text):
        return type("Encoding", (), {"input_ids": [ord(c) % 50 for c in text]})


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(
        **dict(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3,
        )
        | changes
    )
    return LlamaForCausalLM(config).eval()


TEXT = "the quick brown fox jumps over the lazy dog " * 3


@torch.no_grad()
def perplexity_by_hand(model, ids, window):
    """One window, one position, one logarithm at a time, all in float64."""
    model = model.double()
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        piece = ids[start : start + window]
        logits = model(input_ids=torch.tensor([piece]), use_cache=False).logits[0]
        for position in range(len(piece) - 1):
            p = logits[position].exp() / logits[position].exp().sum()
            total -= math.log(p[piece[position + 1]].item())
            count += 1
    return math.exp(total / count)


# 132 tokens: windows of 16 leave a short one of 4, of 131 a single token, of 12 nothing; 200 is one short window.
@pytest.mark.parametrize("window", [2, 12, 16, 131, 200])
@pytest.mark.parametrize("batch", [1, 3])
def test_perplexity_is_that_of_the_loop(window, batch):
    ids = Letters()(TEXT).input_ids
    assert len(ids) == 132
    got = evaluate.perplexity(tiny(), Letters(), TEXT, window=window, batch=batch)
    assert got == pytest.approx(perplexity_by_hand(tiny(), ids, window), rel=1e-5)


def test_perplexity_takes_the_first_tokens_and_reports_progress():
    seen = []
    got = evaluate.perplexity(
        tiny(), Letters(), TEXT, window=16, batch=2, max_tokens=70, progress=lambda *step: seen.append(step)
    )
    assert got == pytest.approx(perplexity_by_hand(tiny(), Letters()(TEXT).input_ids[:70], 16), rel=1e-5)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_perplexity_of_nan_names_the_window():
    model = tiny()
    forward = model.forward

    def broken(input_ids, **keywords):
        out = forward(input_ids=input_ids, **keywords)
        if input_ids[0, 0] == Letters()(TEXT).input_ids[32]:
            out.logits[0, 0, 0] = torch.nan
        return out

    model.forward = broken
    with pytest.raises(NumericsError, match=r"logits are NaN \(at window 2\)"):
        evaluate.perplexity(model, Letters(), TEXT, window=16, batch=1)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [("a", {}, "at least two tokens"), (TEXT, {"window": 1}, "window is 1"), (TEXT, {"batch": 0}, "batch is 0")],
)
def test_perplexity_refuses_what_it_cannot_score(text, options, message):
    with pytest.raises(InputError, match=message):
        evaluate.perplexity(tiny(), Letters(), text, **options)


@torch.no_grad()
def test_divergence_is_that_of_the_loop():
    a, b = tiny(0), tiny(1)
    ids = torch.randint(0, 50, (5, 7), generator=torch.Generator().manual_seed(0))
    got = evaluate.token_divergence(a, b, ids, batch=2)
    kl, same = 0.0, 0
    p, q = (m.double()(input_ids=ids, use_cache=False).logits.softmax(-1) for m in (a, b))
    for row in range(5):
        for position in range(7):
            u, v = p[row, position], q[row, position]
            kl += sum(u[i].item() * math.log(u[i].item() / v[i].item()) for i in range(50))
            same += int(u.argmax() == v.argmax())
    assert got["mean_kl"] == pytest.approx(kl / 35, rel=1e-5)
    assert got["top1_agreement"] == pytest.approx(same / 35)


def test_divergence_from_itself_is_nothing():
    assert evaluate.token_divergence(tiny(), tiny(), torch.arange(14).view(2, 7)) == {
        "mean_kl": 0.0,
        "top1_agreement": 1.0,
    }


def test_divergence_wants_rows_and_finite_logits():
    with pytest.raises(InputError, match=r"ids must be \[batch, tokens\]"):
        evaluate.token_divergence(tiny(), tiny(), torch.arange(7))
    broken = tiny()
    broken.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NumericsError, match="not finite"):
        evaluate.token_divergence(tiny(), broken, torch.arange(14).view(2, 7))


class Counting(torch.nn.Module):
    """Notes how each call looks: (tokens per row, tokens in the cache before it)."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.calls = model, model.config, []

    def forward(self, input_ids, past_key_values=None, **keywords):
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        self.calls.append((tuple(input_ids.shape), past))
        assert keywords["use_cache"]
        return self.model(input_ids=input_ids, past_key_values=past_key_values, **keywords)


def test_decode_speed_starts_each_repeat_from_the_same_cache():
    model = Counting(tiny())
    speed = evaluate.decode_speed(model, batch=2, prompt=5, new=3, repeats=2)
    assert model.calls == [((2, 5), 0)] + [((2, 1), past) for past in (5, 6, 7)] * 3
    assert len(speed.samples) == 2 and min(speed.samples) > 0
    assert speed.tokens_per_s == sum(speed.samples) / 2


def test_prefill_speed_reads_the_prompt_into_an_empty_cache():
    model = Counting(tiny())
    speed = evaluate.prefill_speed(model, length=9, batch=2, repeats=3)
    assert model.calls == [((2, 9), 0)] * 4
    assert speed.tokens_per_s == sorted(speed.samples)[1]


def test_weight_bytes_counts_a_storage_once():
    model = tiny(tie_word_embeddings=True)
    separate = tiny(tie_word_embeddings=False)
    embedding = 50 * 16 * 4
    assert evaluate.weight_bytes(separate) - evaluate.weight_bytes(model) == embedding
    layer = torch.nn.Linear(4, 4, bias=False)
    assert evaluate.weight_bytes(layer) == 64
    layer.register_buffer("view", layer.weight.detach()[:2])
    assert evaluate.weight_bytes(layer) == 64


def test_peak_rss_sees_what_a_block_allocates_and_frees():
    with evaluate.peak_rss() as before:
        pass
    # New pages from the system: an allocator may serve a tensor from memory that is resident already.
    with evaluate.peak_rss() as peak, mmap.mmap(-1, 64 << 20) as pages:
        pages.write(bytes(64 << 20))
    assert before.bytes > 0
    if before.exact and peak.exact:
        assert peak.bytes - before.bytes > 50 << 20


def test_assets_are_there():
    names = {path.name for path in assets.model_path().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert assets.evaluation_text().startswith(" \n = Robert <unk> = \n")
