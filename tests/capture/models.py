"""Tiny random models and a float runner for the tests of capture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from qpass.capture.export import Captured, export_model
from qpass.capture.interface import rebuild

_COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
_GQA = {**_COMMON, "num_key_value_heads": 2}
_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, _GQA),
    "qwen3": (hf.Qwen3Config, {**_GQA, "head_dim": 24}),
    "mistral": (hf.MistralConfig, {**_GQA, "sliding_window": 8}),
    "gemma": (hf.GemmaConfig, {**_GQA, "head_dim": 16}),
    "gemma2": (hf.Gemma2Config, {**_GQA, "head_dim": 16, "sliding_window": 8}),
    "gemma3": (hf.Gemma3TextConfig, {**_GQA, "head_dim": 16, "sliding_window": 8,
                                     "layer_types": ["sliding_attention", "full_attention"]}),
    "opt": (hf.OPTConfig, {
        "vocab_size": 256, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "word_embed_proj_dim": 64,
    }),
    "gpt_neox": (hf.GPTNeoXConfig, _COMMON),
    "gpt2": (hf.GPT2Config, {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "phi": (hf.PhiConfig, _GQA),
    "phi3": (hf.Phi3Config, _GQA),
    "mixtral": (hf.MixtralConfig, {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}  # fmt: skip
NEAR = ("mistral", "gemma", "phi", "phi3")
"""Each has the parts of another one. Their cases are marked slow."""
FAMILIES = tuple(pytest.param(name, marks=pytest.mark.slow) if name in NEAR else name for name in CONFIGS)


def causal_lm(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny random causal LM in eval mode; weights are large enough that logits are far apart."""
    torch.manual_seed(0)
    config_type, fields = CONFIGS[family]
    config = config_type(**{**_NO_SPECIAL, **fields}, initializer_range=0.2)
    attention = "eager" if family == "gemma2" else "sdpa"
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).eval()


class FloatRunner(nn.Module):
    """Runs an exported program on flat tensors; owns its weights as buffers."""

    def __init__(self, exported: ExportedProgram) -> None:
        super().__init__()
        self.graph = exported.graph_module
        self.slots: list[tuple[str, Any]] = []
        owned: dict[int, str] = {}
        for spec in exported.graph_signature.input_specs:
            if spec.kind is InputKind.USER_INPUT:
                constant = getattr(spec.arg, "value", None)
                self.slots.append(("constant", constant) if hasattr(spec.arg, "value") else ("input", None))
                continue
            is_constant = spec.kind is InputKind.CONSTANT_TENSOR or spec.target not in exported.state_dict
            tensor = (exported.constants if is_constant else exported.state_dict)[spec.target]
            if id(tensor) not in owned:
                owned[id(tensor)] = name = spec.target.replace(".", "_")
                self.register_buffer(name, tensor.detach())
            self.slots.append(("buffer", owned[id(tensor)]))

    def forward(self, *flat: Tensor) -> tuple[Any, ...]:
        rest = iter(flat)
        filled = [
            next(rest) if kind == "input" else value if kind == "constant" else getattr(self, value)
            for kind, value in self.slots
        ]
        return tuple(self.graph(*filled))


def float_copy(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Captured]:
    """The model captured and rebuilt on its own float graph."""
    captured = export_model(model, *args, **kwargs)
    return rebuild(model, captured.call, FloatRunner(captured.exported)), captured
