"""Rotary embedding of interleaved pairs is refused by its name, with what to do, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import qpass
from qpass.errors import UnsupportedError

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16,
         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 32, "n_layer": 1, "n_positions": 64, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("GPTJ", {**GPT, "n_head": 2, "rotary_dim": 8}), ("CodeGen", {**GPT, "n_head": 4, "rotary_dim": 4}),
        ("Glm", SIZES), ("Helium", SIZES), ("Ernie4_5", SIZES),
    ],
)  # fmt: skip
def test_interleaved_pairs_are_named(family: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes)
    float_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedError, match=r"interleaved pairs, channels 2i and 2i \+ 1.*such as w8a8-int8"):
        qpass.trace(float_model, "int-only-w8a8", target="reference", until="INTEGER")
