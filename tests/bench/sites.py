"""Cost of scale flow: ``python -m tests.bench.sites``. It must be linear in layers and in hidden size.

Decoders of ``tests/tiny.py``'s shape with weights on the meta device, so that only the analysis is timed; the slope is
that of log time over log size, between the two largest sizes (1 is linear). Results go to ``docs/benchmarks/sites.md``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date
from math import log
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.graph.program import Program
from qpass.passes.raise_ops import raise_ops
from qpass.sites import analyse

LAYERS = (2, 4, 8, 16, 32, 64)
HIDDEN = (256, 512, 1024, 2048, 4096, 8192)
TOKENS = (4, 64, 1024, 16384)
PAGE = Path("docs/benchmarks/sites.md")


def program(layers: int, hidden: int, tokens: int = 4) -> Program:
    """The RAISED program of a Llama of that size, all sizes static."""
    config = LlamaConfig(vocab_size=1024, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
                         num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=2,
                         max_position_embeddings=32768, tie_word_embeddings=False, use_cache=False)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        ids = torch.zeros(1, tokens, dtype=torch.int64)
    exported = torch.export.export(model, (ids,), {"use_cache": False}, strict=False).run_decompositions({})
    return raise_ops(normalise(from_export(exported, prefix="", dims={}, call=None)))


def seconds(target: Program, repeats: int) -> tuple[float, int]:
    """Median seconds of an analysis, and the freedom it found."""
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = analyse(target, smooth=True)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples), found.freedom


def rows(name: str, sizes: tuple[int, ...], repeats: int, **fixed: int) -> list[tuple[int, float, int]]:
    """(size, seconds, freedom) for each size of one dimension."""
    result = []
    for size in sizes:
        taken, freedom = seconds(program(**{"layers": 2, "hidden": 256, **fixed, name: size}), repeats)
        print(f"{name} {size}: {taken:.3f} s, freedom {freedom}", flush=True)
        result.append((size, taken, freedom))
    return result


def slope(found: list[tuple[int, float, int]]) -> float:
    """d log(seconds) / d log(size) between the two largest sizes."""
    (x, a, _), (y, b, _) = found[-2:]
    return log(b / a) / log(y / x)


def page(tables: dict[str, list[tuple[int, float, int]]]) -> str:
    """The page."""
    setting = f"{date.today()}, {platform.machine()}, one thread, torch {torch.__version__}"
    lines = ["# Cost of scale flow", "", "Made by `python -m tests.bench.sites`. Do not edit.", "",
             f"{setting}. Llama-shaped decoders with gated sites included; the median of 3. Two layers and hidden size",
             "256 where a table does not say otherwise.", ""]  # fmt: skip
    for name, found in tables.items():
        steep = f"Slope between the two largest: **{slope(found):.2f}** (1 is linear, 0 is constant)."
        lines += [f"## {name}", "", steep, "", f"| {name} | seconds | degrees of freedom |", "|---:|---:|---:|"]
        lines += [f"| {size} | {taken:.3f} | {freedom} |" for size, taken, freedom in found]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sites", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = {"layers": rows("layers", LAYERS, options.repeats),
              "hidden size": rows("hidden", HIDDEN, options.repeats),
              "tokens": rows("tokens", TOKENS, options.repeats)}  # fmt: skip
    PAGE.write_text(page(tables))
    print(page(tables))


if __name__ == "__main__":
    main()
