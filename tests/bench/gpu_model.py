"""A whole model on a GPU: the shape of Llama-3-8B with random weights, four and eight layers, extrapolated to 32."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import qpass

from .gpu_peers import TORCHAO, missing

LAYERS, WHOLE = (4, 8), 32
SCHEMES = ("w8a8-int8", "w8a8-fp8", "w4a16-g128", "w4a8-fp-m2")
WORK = {"decode 1": (1, 1, 512), "decode 64": (64, 1, 512), "prefill 4096": (1, 4096, 0)}
"""Batch, tokens, and how many are in the cache."""
EIGHT_B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # fmt: skip
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64
}


def make(layers: int, sizes: dict[str, int], device: str) -> nn.Module:
    """A model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **sizes)
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def inputs(model: nn.Module, batch: int, tokens: int, past: int) -> dict[str, Any]:
    """One call; the cache is filled with noise."""
    config, device = model.config, next(model.parameters()).device
    cache = DynamicCache()
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers if past else 0):
        keys, values = (torch.randn(batch, heads, past, width, device=device, dtype=torch.bfloat16) for _ in range(2))
        cache.update(keys, values, layer)
    ids = torch.randint(0, config.vocab_size, (batch, tokens), device=device)
    mask = torch.ones(batch, past + tokens, dtype=torch.int64, device=device)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}


def step(model: nn.Module, batch: int, tokens: int, past: int) -> Callable[[], Any]:
    """A call that leaves its cache as it was: each call gets a fresh one that shares the tensors."""
    given = inputs(model, batch, tokens, past)
    filled = [(layer.keys, layer.values) for layer in given["past_key_values"].layers]

    def run() -> Any:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(filled):
            cache.update(keys, values, number)
        return model(**{**given, "past_key_values": cache}, logits_to_keep=1).logits

    return run


def measure_model(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """Milliseconds of a step in a CUDA graph: bfloat16 by torch.compile, ours, and torchao's where it is there."""
    records = []
    for layers in LAYERS:
        model = make(layers, EIGHT_B, "cuda")
        models: dict[str, nn.Module] = {"bf16": torch.compile(model, dynamic=False)}  # type: ignore[dict-item]
        for scheme in SCHEMES:
            if more():
                models[scheme] = qpass.compile(model, scheme, target="cuda")
        for name, config in (TORCHAO.items() if missing("torchao") is None else ()):
            if more():
                models[name] = _torchao(layers, config)
        for work, (batch, tokens, past) in WORK.items():
            for name, one in models.items():
                if more():
                    ms = milliseconds(step(one, batch, tokens, past), args.turns)
                    records.append({"name": name, "what": work, "layers": layers, "ms": ms})
                    print(records[-1])
    return records + extrapolated(records)


def _torchao(layers: int, config: Callable[[], Any]) -> nn.Module:
    """The same model, its linears torchao's, compiled as bfloat16 is."""
    from torchao.quantization import quantize_

    model = make(layers, EIGHT_B, "cuda")
    quantize_(model, config())
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def milliseconds(run: Callable[[], Any], turns: int) -> float:
    """Of one call, replayed from a graph."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(turns):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10)
    return float(median(times))


def extrapolated(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For ``WHOLE`` layers: a line through the two numbers of layers that were measured."""
    made = []
    found = {(one["name"], one["what"], one["layers"]): one["ms"] for one in records}
    for name, what in {(one["name"], one["what"]) for one in records}:
        few, many = (found.get((name, what, layers)) for layers in LAYERS)
        if few is not None and many is not None:
            ms = many + (many - few) / (LAYERS[1] - LAYERS[0]) * (WHOLE - LAYERS[1])
            made.append({"name": name, "what": f"{what}, {WHOLE} layers extrapolated", "layers": WHOLE, "ms": ms})
    return made
