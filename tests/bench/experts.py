"""Times of one mixture-of-experts block on a CPU: eager, and as qpass compiles it.

    python -m tests.bench.experts [--threads 1] [--tokens 1 8 512]

The block is Mixtral's, with 8 experts of 1024 x 1792 and two a token, in bfloat16, with random weights. Printed are
milliseconds: the median of runs that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import qpass

RECIPES = ("w8a8-int8", "w8a16", "w4a16-g128")
ROUNDS = 15


def block(experts: str) -> nn.Module:
    """The block with one of transformers' ways to compute it."""
    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=1024, intermediate_size=1792, num_local_experts=8, num_experts_per_tok=2)
    config._experts_implementation = experts
    made = MixtralSparseMoeBlock(config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.03)
    return made.eval().to(torch.bfloat16)


def milliseconds(calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> dict[str, float]:
    """Median of each, taking turns, after two rounds that do not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(ROUNDS + 2):
            for name, call in calls.items():
                start = time.perf_counter()
                call(x)
                if turn > 1:
                    found[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 512])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(1, 16, 1024).bfloat16()
    calls: dict[str, Callable[[Tensor], Tensor]] = {f"eager, {name}": block(name) for name in ("grouped_mm", "eager")}
    seq = torch.export.Dim("seq", min=1, max=4096)
    for recipe in RECIPES:
        lines = {"gate.weight": "keep", "*": recipe}
        given = {"linears": lines}, (x,)
        calls[f"qpass {recipe}"] = qpass.compile(block("grouped_mm"), *given, dynamic_shapes=({1: seq},))
    print("tokens  " + "  ".join(calls))
    for tokens in options.tokens:
        times = milliseconds(calls, torch.randn(1, tokens, 1024).bfloat16())
        print(f"{tokens:<6}  " + "  ".join(f"{times[name]:<{len(name)}.2f}" for name in calls))


if __name__ == "__main__":
    main()
