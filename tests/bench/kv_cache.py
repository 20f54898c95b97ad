"""A cache of codes beside one in bfloat16, on the CPU: ``python -m tests.bench.kv_cache``.

The shipped Llama, W8A8, compiled twice: with the cache as it is, and with ``kv8`` or ``kv4``. A decode step behind a
context, in turns, one process, one thread: the median, its ratio, and the bytes of the cache.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median

import torch
from transformers import AutoModelForCausalLM

import qpass
from qpass import assets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kv_cache", description=__doc__)
    parser.add_argument("--contexts", nargs="+", type=int, default=[256, 1024, 2000])
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(assets.model_path(), dtype=torch.bfloat16).eval()
    names = {"bf16": "w8a8-int8", "kv8": "w8a8-int8+kv8", "kv4": "w8a8-int8+kv4"}
    compiled = {name: qpass.compile(model, recipe) for name, recipe in names.items()}
    print("| context | cache | bytes | of bf16 | ms a step | times bf16 |\n|---|---|---|---|---|---|")
    for context in args.contexts:
        measure(compiled, context, args.turns)


def measure(compiled: dict[str, torch.nn.Module], context: int, turns: int) -> None:
    """Print a row for each cache."""
    ids = torch.randint(3, 4000, (1, context), generator=torch.Generator().manual_seed(0))
    caches = {name: one(ids, logits_to_keep=1).past_key_values for name, one in compiled.items()}
    size = {name: sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            for name, cache in caches.items()}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for turn in range(turns + 2):
        for name, one in compiled.items():
            cache = copy.copy(caches[name])  # the same tensors: a step makes new ones
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            start = time.perf_counter()
            one(ids[:, :1], past_key_values=cache)
            if turn > 1:
                times[name].append(time.perf_counter() - start)
    base = median(times["bf16"])
    for name, each in times.items():
        step = median(each)
        print(f"| {context} | {name} | {size[name]} | {size[name] / size['bf16']:.2f} | {step * 1e3:.2f} | "
              f"{base / step:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
