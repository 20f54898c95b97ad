"""``python -m qpass demo``: compress the shipped model and measure, before and after, on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from qpass import pipeline
from qpass.assets import DESCRIPTION, evaluation_text
from qpass.console import Steps, token_bar
from qpass.debug.evaluate import decode_sampler, perplexity, prefill_sampler, weight_bytes
from qpass.debug.report import mib, number, write_report
from qpass.files import output_folder
from qpass.loading import load_model, load_tokenizer
from qpass.recipe import Recipe

PROMPT = "The city of Paris is"
WINDOW = 256
_DECODE, _PREFILL = 16, 256
_ROUNDS, _SECONDS = 7, 12.0

Row = dict[str, Any]


def demo(args: argparse.Namespace) -> None:
    """Compile, measure, print, write. Raises QPassError."""
    started = time.perf_counter()
    recipe = Recipe.parse(args.recipe)
    pipeline.load_target(args.target)
    with output_folder(args.out, force=True) as folder:
        threads = idle_threads()
        torch.set_num_threads(threads)  # before anything is compiled: generated code has the number inside
        print(f"qpass demo: {DESCRIPTION}, recipe {recipe}, {threads} of {os.cpu_count()} cores")
        tokenizer = load_tokenizer("demo")
        model = load_model("demo", dtype=args.dtype)
        with Steps() as steps:
            trace = pipeline.trace(model, recipe, target=args.target, progress=steps)
        print(f"\n{trace.plan}\n\nbuilding for target {args.target}, the longest step ...", flush=True)
        with Steps(["built"]) as steps:
            compiled = pipeline.build(model, trace, target=args.target, progress=steps)
        print(f"built in {trace.seconds['build']:.0f} s\n", flush=True)
        models = {f"{dtype}, eager": model if model.dtype == torch_dtype(dtype) else load_model("demo", dtype=dtype)
                  for dtype in ("float32", "bfloat16")}  # fmt: skip
        before = f"{_name(model.dtype)}, eager"
        after = f"{_name(model.dtype)}, qpass {recipe}"
        models[after] = compiled
        rows = measure(models, tokenizer, args.tokens, args.rounds)
        print("\n".join(text_table(rows)))
        notes = conclusions(rows, before, after) + caveats(args.tokens)
        notes += [f"{name} writes: {generate(models[name], tokenizer, PROMPT, 30)!r}" for name in (before, after)]
        print("\n" + "\n".join(f"- {note}" for note in notes) + "\n", flush=True)
        write_report(trace, folder, title="The shipped model", recipe=recipe, measured=rows, notes=notes)
    out = Path(args.out)
    print(f"report: {out / 'report.html'} (also report.md, report.json)\ndiffs:  {out / 'stages'}")
    print(f"done in {time.perf_counter() - started:.0f} s")


def idle_threads() -> int:
    """As many threads as torch uses, less the cores that other programs keep busy; at least one.

    On a core that it has to share, a thread makes all others wait at every barrier: two are then far slower than one.
    """
    idle = (os.cpu_count() or 1) - os.getloadavg()[0]
    return max(1, min(torch.get_num_threads(), round(idle)))


def torch_dtype(name: str) -> torch.dtype:
    """``torch.float32`` for ``float32``."""
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(models: Mapping[str, Any], tokenizer: Any, tokens: int, rounds: int = _ROUNDS) -> list[Row]:
    """One row a model: weight bytes, perplexity on the first ``tokens`` of the shipped text, tokens per second.

    Speeds are medians of loops taken in turns, so that a machine that slows down slows all of them.
    """
    values = {}
    for name, model in models.items():
        with token_bar(f"perplexity, {name}", WINDOW) as progress:
            values[name] = perplexity(model, tokenizer, evaluation_text(), window=WINDOW, max_tokens=tokens,
                                      progress=progress)  # fmt: skip
    _say("measuring speed, the models in turns ...")
    decode = speeds({name: decode_sampler(model, new=_DECODE) for name, model in models.items()}, rounds)
    prefill = speeds({name: prefill_sampler(model, length=_PREFILL) for name, model in models.items()}, rounds)
    return [
        {
            "model": name,
            "weights": mib(weight_bytes(model)),
            "perplexity": round(values[name], 3),
            "decode tokens/s": round(decode[name], 1),
            "prefill tokens/s": round(prefill[name], 1),
        }
        for name, model in models.items()
    ]


def speeds(samplers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each sampler, called in turns: at most ``rounds`` of them, fewer where the machine is slow."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    start = time.perf_counter()
    for sample in samplers.values():
        sample()  # warm-up
    for _ in range(rounds):
        for name, sample in samplers.items():
            samples[name].append(sample())
        if time.perf_counter() - start > _SECONDS:
            break
    return {name: median(taken) for name, taken in samples.items()}


def generate(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """The prompt and its greedy continuation."""
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**encoded, max_new_tokens=tokens, do_sample=False)
    return " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())


def conclusions(rows: list[Row], before: str, after: str) -> list[str]:
    """One sentence a number, for ``after`` against ``before``; worse is called worse."""
    old, new = (next(row for row in rows if row["model"] == name) for name in (before, after))
    sizes = [float(row["weights"].split()[0]) for row in (old, new)]
    change = 100 * (new["perplexity"] / old["perplexity"] - 1)
    lines = [
        f"weights are {sizes[0] / sizes[1]:.2f} times smaller than {before}; the embedding, which is also the head, "
        "stays in float",
        f"perplexity {old['perplexity']:.2f} -> {new['perplexity']:.2f} ({change:+.2f}%, lower is better)",
    ]
    for kind in ("decode", "prefill"):
        ratio = new[f"{kind} tokens/s"] / old[f"{kind} tokens/s"]
        word = "as fast as" if 0.95 < ratio < 1.05 else "times the speed of"
        lines.append(f"{kind} runs {word if word.startswith('as') else f'at {ratio:.2f} {word}'} {before}")
    return lines


def caveats(tokens: int) -> list[str]:
    """How the numbers were taken."""
    lines = [f"perplexity: the first {tokens} tokens of the shipped WikiText-2 test text, windows of {WINDOW}",
             f"decode: one row, {_DECODE} steps after a prompt of 32; prefill: one row of {_PREFILL}; "
             f"{torch.get_num_threads()} of {os.cpu_count()} cores; medians of loops taken in turns"]  # fmt: skip
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores + 0.5:
        lines.append(f"this machine is busy (load {load:.1f} on {cores} cores): the speeds above are rough")
    return lines


def text_table(rows: list[Row]) -> list[str]:
    """Rows as aligned text, numbers to the right."""
    cells = [list(rows[0]), *([number(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
            for row in cells]  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
