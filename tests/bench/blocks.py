"""What learning from blocks is worth: ``python -m tests.bench.blocks --train wikitext-2/train.txt``.

Perplexity of the shipped Llama, as trained and with outlier channels put in (see ``tests.bench.smoothquant``), in six
schemes and with each method; wall time and peak memory of each run. Each cell is a process of its own, forked from one
that has captured the model. Writes ``docs/accuracy-blocks.json`` after each cell, in which cells that are there are not
measured again, and the tables of ``docs/accuracy.md``. About a minute a cell on one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity
from qpass.observe.feed import from_texts
from qpass.recipe import Recipe
from qpass.sites import analyse

from .report import describe_machine
from .smoothquant import AFTER, BEFORE, DOCS, PAGE, TARGET, TOKENS, folded, outliers, raised

RAW = DOCS / "accuracy-blocks.json"
BEGIN, END = "<!-- blocks: begin -->", "<!-- blocks: end -->"
LENGTH, BATCHES, STEPS = 128, 32, 128
TRAIN = 1_000_000  # letters of the training split
SCHEMES = {
    "W4A16 g128": "w4a16-g128", "W3A16 g128": "w3a16-g128", "W2A16 g64": "w2a16-g64", "W8A8": "w8a8-int8",
    "W6A6": "w6a6", "W4A4": "w4a4",
}  # fmt: skip
_LWC, _LET, _FSBR = {"lwc": {"rate": 0.05}}, {"let": {"rate": 0.01}}, {"fsbr": {"rate": 0.01}}
METHODS: dict[str, list[Any]] = {
    "RTN": [], "SmoothQuant": ["smoothquant"], "LWC": [_LWC], "LET": [_LET], "LWC + LET": [_LWC, _LET],
    "FSBR": [_LWC, _FSBR],
}  # fmt: skip


def recipe(scheme: str, method: str, seed: int) -> Recipe:
    """Everything at settings that fit one core: 128 steps a block where the papers take 2,560 of 2,048 tokens."""
    learning = {"steps": STEPS, "seed": seed, "same_input": scheme == "W2A16 g64", "progress": False}
    return Recipe.parse({"methods": METHODS[method], "linears": {"*": SCHEMES[scheme]}, "learning": learning})


def cell(model: Any, captured: Any, made: Recipe, batches: Any, tokenizer: Any, send: Any) -> None:
    """One measurement, in a process of its own."""
    began = time.perf_counter()
    trace = pipeline.run(captured, made, pipeline.load_target(TARGET), calibration=batches)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    compiled = pipeline.build(model, trace, target=TARGET)
    value = perplexity(compiled, tokenizer, evaluation_text(), max_tokens=TOKENS)
    assert trace.plan is not None
    losses = [re.findall(r"loss ([\d.e+-]+) of round to nearest -> ([\d.e+-]+)", line) for line in trace.plan.methods]
    send.send({
        "perplexity": value, "seconds": seconds, "peak_mib": peak,
        "losses": [[float(a), float(b)] for found in losses for a, b in found],
        "rolled_back": sum("rolled back" in line for line in trace.plan.methods),
    })  # fmt: skip


def measure(train: Path, seed: int, models: list[str], schemes: list[str], methods: list[str]) -> None:
    """All cells that the file does not have yet."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = train.read_text(encoding="utf-8")[:TRAIN]
    batches = from_texts(text, tokenizer, length=LENGTH, batches=BATCHES, seed=seed)
    captured = pipeline.capture(model)
    fork = multiprocessing.get_context("fork")
    for name in models:
        one, program = model, captured
        if name == AFTER:
            ready = raised(captured)
            one = folded(model, ready, outliers(analyse(ready), seed))
            program = pipeline.capture(one)
        kept = load()
        value = perplexity(one, tokenizer, evaluation_text(), max_tokens=TOKENS)
        kept.setdefault(f"{seed}/{name}/float", {"perplexity": value})
        save(kept)
        for scheme in schemes:
            for method in methods:
                place = f"{seed}/{name}/{scheme}/{method}"
                if place in load():
                    continue
                receive, send = fork.Pipe(duplex=False)
                made = recipe(scheme, method, seed)
                child = fork.Process(target=cell, args=(one, program, made, batches, tokenizer, send))
                child.start()
                send.close()  # so that a child that dies is an error here, and not a wait
                found = receive.recv()
                child.join()
                cost = f"{found['seconds']:.0f} s, {found['peak_mib']} MiB"
                print(f"{found['perplexity']:10.3f}  {place} ({cost})", flush=True)
                save(load() | {place: found})


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RAW.read_text()) if RAW.exists() else {}
    return found


def save(kept: dict[str, Any]) -> None:
    kept["machine"] = describe_machine(torch.get_num_threads())
    RAW.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


# --------------------------------------------------------------------------------------------------------- report


def tables(kept: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    lines: list[str] = []
    for seed in sorted({key.split("/")[0] for key in kept if "/" in key}, key=int):
        for name in (BEFORE, AFTER):
            cells = {key: value for key, value in kept.items() if key.startswith(f"{seed}/{name}/")}
            if len(cells) < 2:
                continue
            schemes = [scheme for scheme in SCHEMES if any(f"/{scheme}/" in key for key in cells)]
            lines += [f"### Seed {seed}, {name}", "", f"Float: {cells[f'{seed}/{name}/float']['perplexity']:.2f}. "
                      "Perplexity (seconds, peak MiB).", ""]  # fmt: skip
            lines += [f"| method | {' | '.join(schemes)} |", "|---|" + "---|" * len(schemes)]
            for method in METHODS:
                row = [_cell(cells.get(f"{seed}/{name}/{scheme}/{method}")) for scheme in schemes]
                lines.append(f"| {method} | {' | '.join(row)} |")
            lines.append("")
    return lines


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    return f"{found['perplexity']:.2f} ({found['seconds']:.0f} s, {found['peak_mib']})"


def write_page() -> None:
    """Remake the tables of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *tables(load()), END]) + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, help="WikiText-2's training split; without it, only the tables are made")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows, the order, and the outliers")
    parser.add_argument("--models", nargs="+", default=[BEFORE, AFTER], choices=[BEFORE, AFTER])
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    args = parser.parse_args()
    disable_progress_bar()
    if args.train is not None:
        measure(args.train, args.seed, args.models, args.schemes, args.methods)
    write_page()


if __name__ == "__main__":
    main()
