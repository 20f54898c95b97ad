"""Folders with tiny models and a real tokenizer, for commands that take a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from qpass.assets import model_path

_SIZES: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


def causal(folder: Path, layers: int = 2) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(**_SIZES, num_hidden_layers=layers, num_key_value_heads=1)
    return _save(LlamaForCausalLM(config), folder)


def encoder(folder: Path) -> str:
    torch.manual_seed(0)
    return _save(BertModel(BertConfig(**_SIZES, num_hidden_layers=1, max_position_embeddings=24)), folder)


def _save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return str(folder)
