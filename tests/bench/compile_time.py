"""Where compile time goes, by stage and number of layers: ``python -m tests.bench.compile_time``.

Prints processor time of export and of each pass for random Llamas of 2, 4, 8 and 16 layers, each in a fresh process,
and what the passes cost relative to export. ``--size 1b`` compiles the large model of ``tests.bench.cpu`` once instead,
with its peak of memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
import transformers

import qpass
from qpass import pipeline
from qpass.debug.evaluate import peak_rss, rss_bytes, weight_bytes
from qpass.stages import check

from .variants import SIZES, _float_model

LAYERS = (2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[name for name in SIZES if name != "small"])
    parser.add_argument("--layers", type=int, help="one row only")
    parser.add_argument("--recipe", default="w8a8-int8")
    args = parser.parse_args()
    if args.size:
        _whole(args.size, args.recipe)
    elif args.layers:
        _layers(args.layers, args.recipe)
    else:
        _rows(args.recipe)


def _rows(recipe: str) -> None:
    """One process a row: what is traced once in a process is part of each."""
    print(f"{'layers':>6} {'export':>8} {'passes':>8} {'ratio':>7}  by pass, seconds of processor time", flush=True)
    for layers in LAYERS:
        command = [sys.executable, "-m", "tests.bench.compile_time", "--layers", str(layers), "--recipe", recipe]
        subprocess.run(command, check=True)


def _layers(layers: int, recipe: str) -> None:
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    began = time.process_time()
    program = check(pipeline.capture(model))
    export, seconds = time.process_time() - began, {}
    for stage, step in pipeline.passes(qpass.Recipe.parse(recipe), pipeline.load_target("cpu")):
        began = time.process_time()
        program = check(step(program))
        seconds[stage] = time.process_time() - began
    total = sum(seconds.values())
    parts = " ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())
    print(f"{layers:>6} {export:>8.2f} {total:>8.2f} {total / export:>7.1%}  {parts}", flush=True)


def _whole(size: str, recipe: str) -> None:
    libraries = rss_bytes()
    model = _float_model(SIZES[size], torch.bfloat16)
    with peak_rss() as peak:
        compiled = qpass.compile(model, recipe)
    before, after = weight_bytes(model), weight_bytes(compiled)
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    bound = before + after + 2 * layer + 2**30
    print({stage: round(value, 2) for stage, value in compiled.qpass_seconds.items()})
    print(f"peak of the process {_gib(peak.bytes)}: model {_gib(before)}, result {_gib(after)}, libraries "
          f"{_gib(libraries)}, the rest {_gib(peak.bytes - before - after - libraries)}")  # fmt: skip
    print(f"model, result, two layers and 1 GiB: {_gib(bound)}")
    planned = compiled.qpass_plan.bytes_after
    print(f"weights {after} bytes, {after / planned - 1:+.2%} of the plan's {planned}")


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
