"""Tiny random language models of real architectures, loud enough for every weight to matter."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import transformers as T
from torch import Tensor

from qpass.graph.program import Program
from qpass.passes.raise_ops import raise_ops
from tests.sites.oracle import loud, program_of

H, F, HEADS, KV, V = 16, 24, 4, 2, 64
L = 1  # layers; "llama" and "albert" have two
D = H // HEADS
_BASE = dict(vocab_size=V, hidden_size=H, intermediate_size=F, num_hidden_layers=L, num_attention_heads=HEADS,
             max_position_embeddings=64, tie_word_embeddings=False)  # fmt: skip
_GQA = dict(**_BASE, num_key_value_heads=KV)
_TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
CONFIGS: dict[str, Any] = {
    "llama": lambda: T.LlamaConfig(**{**_GQA, "num_hidden_layers": 2}),
    "llama-tied": lambda: T.LlamaConfig(**{**_GQA, "tie_word_embeddings": True}),
    "llama-bias": lambda: T.LlamaConfig(**_GQA, attention_bias=True, mlp_bias=True),
    "mistral": lambda: T.MistralConfig(**_GQA, sliding_window=4),
    "qwen2": lambda: T.Qwen2Config(**_GQA),
    "qwen3": lambda: T.Qwen3Config(**_GQA, head_dim=D),
    "gemma": lambda: T.GemmaConfig(**_GQA, head_dim=D),
    "gemma2": lambda: T.Gemma2Config(**_GQA, head_dim=D),
    "phi3": lambda: T.Phi3Config(**_GQA, **_TOKENS),
    "cohere": lambda: T.CohereConfig(**_GQA, **_TOKENS),
    "gpt_neox": lambda: T.GPTNeoXConfig(**_BASE, rotary_pct=0.5),
    "gptj": lambda: T.GPTJConfig(vocab_size=V, n_embd=H, n_layer=L, n_head=HEADS, n_positions=64, rotary_dim=2,
                                 n_inner=F, tie_word_embeddings=False, **_TOKENS),
    "opt": lambda: T.OPTConfig(vocab_size=V, hidden_size=H, ffn_dim=F, num_hidden_layers=L, num_attention_heads=HEADS,
                               max_position_embeddings=64, word_embed_proj_dim=H, tie_word_embeddings=False),
    "gpt2": lambda: T.GPT2Config(vocab_size=V, n_embd=H, n_layer=L, n_head=HEADS, n_positions=64,
                                 tie_word_embeddings=False, **_TOKENS),
    "nemotron": lambda: T.NemotronConfig(**_GQA),
    "mixtral": lambda: T.MixtralConfig(**_GQA, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: T.Qwen3MoeConfig(**_GQA, head_dim=D, num_experts=4, num_experts_per_tok=2,
                                          moe_intermediate_size=F, decoder_sparse_step=1),
    "gpt_oss": lambda: T.GptOssConfig(**_GQA, head_dim=D, num_local_experts=4, num_experts_per_tok=2, rope_scaling=None,
                                      **_TOKENS),
    "deepseek_v3": lambda: T.DeepseekV3Config(**_BASE, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
                                              qk_nope_head_dim=4, v_head_dim=4, n_routed_experts=4,
                                              num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=F,
                                              first_k_dense_replace=0, n_shared_experts=1),
    "bert": lambda: T.BertConfig(**_BASE),
    "albert": lambda: T.AlbertConfig(**{**_BASE, "num_hidden_layers": 2}, embedding_size=H),
}  # fmt: skip
NEAR = ("llama-tied", "llama-bias", "mistral", "gemma", "phi3", "cohere", "qwen3_moe", "albert")
"""Each has the parts of another one. Their cases are marked slow."""


def cases(names: Iterable[str]) -> list[Any]:
    """Parameters of a test."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in NEAR else []) for name in names]


ENCODERS = ("bert", "albert")
EAGER = ("gpt_oss", "gemma2", "gptj")


@functools.cache
def model(name: str) -> Any:
    """The model, in float32: its program is run in float64."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    kind = T.AutoModelForMaskedLM if name in ENCODERS else T.AutoModelForCausalLM
    made = kind.from_config(config, attn_implementation="eager" if name in EAGER else "sdpa")
    return loud(made)


@functools.cache
def normal(name: str) -> Program:
    """The NORMAL program."""
    return program_of(model(name))


@functools.cache
def program(name: str) -> Program:
    """The RAISED program."""
    return raise_ops(normal(name))


def inputs(name: str) -> list[Tensor]:
    ids = torch.randint(3, V, (2, 6), generator=torch.Generator().manual_seed(0))
    found: list[Tensor] = program(name).call.flatten((), {"input_ids": ids})
    return found
