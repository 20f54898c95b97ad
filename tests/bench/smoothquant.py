"""What smoothing is worth where activations have outliers: ``python -m tests.bench.smoothquant``.

The shipped Llama has no outlier channels, so some are put in: a random legal re-scaling that leaves the float function
as it is makes a few channels of each activation 30 to 100 times larger. Then perplexity is measured with and without
smoothing. Writes ``docs/accuracy.json`` and the tables of ``docs/accuracy.md``. Takes about five minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import perplexity
from qpass.graph.program import Program
from qpass.methods.smoothing import DEFAULT_KINDS
from qpass.recipe import Recipe
from qpass.sites import Analysis, analyse
from qpass.sites.edits import Fold, apply

from .report import describe_machine

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RAW = DOCS / "accuracy.md", DOCS / "accuracy.json"
BEGIN, END = "<!-- smoothquant: begin -->", "<!-- smoothquant: end -->"
TARGET = "reference"
SHARE, LOW, HIGH = 0.02, 30.0, 100.0
TOKENS, CALIBRATION = 10_240, 8_192  # from the start of the text, and from its end: other articles
SCHEMES = ("w8a8-int8", "w4a8-int8", "int4:channel:sym x int8:token:asym")
BEFORE = "as trained"
AFTER = "with outliers"


@dataclass(frozen=True)
class Row:
    """One line of the table: which model, which method with which options, and in which schemes."""

    model: str
    method: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    schemes: tuple[str, ...] = SCHEMES

    def recipe(self, scheme: str) -> Recipe:
        methods = [{self.method: dict(self.options)}] if self.method else []
        return Recipe.parse({"methods": methods, "linears": {"*": scheme}})

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.options)
        return f"{self.method or 'no method'}{f', {options}' if options else ''}"


ROWS = (
    Row(BEFORE),
    *(Row(BEFORE, method, (("alpha", 0.5),)) for method in ("smoothquant", "smoothquant-free")),
    Row(AFTER),
    *(Row(AFTER, "smoothquant", (("alpha", alpha),)) for alpha in (0.25, 0.5, 0.75)),
    Row(AFTER, "smoothquant-free", (("alpha", 0.5),)),
    *(Row(AFTER, "smoothquant", (("alpha", 0.5), ("kinds", kind)), SCHEMES[:1]) for kind in DEFAULT_KINDS),
)


# ------------------------------------------------------------------------------------------------------- outliers


def outliers(analysis: Analysis, seed: int) -> list[Fold]:
    """A re-scaling of each site that smoothing acts on: a few channels, drawn at random, become much larger.

    A share ``SHARE`` of a site's factors, at least one, is 1 / r with r log-uniform in [``LOW``, ``HIGH``]; the others
    are 1. As x' = x / s, the activation of those channels is r times larger.
    """
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for site in analysis.pick(lambda site: site.kind in DEFAULT_KINDS):
        count = max(1, round(SHARE * site.size))
        channels = torch.randperm(site.size, generator=generator)[:count]
        larger = LOW * (HIGH / LOW) ** torch.rand(count, generator=generator, dtype=torch.float64)
        scale = torch.ones(site.size, dtype=torch.float64)
        scale[channels] = 1 / larger
        edits.append(Fold(site, scale))
    return edits


def folded(model: nn.Module, program: Program, edits: Iterable[Fold]) -> nn.Module:
    """A copy of ``model``, an ordinary module, with the parameters that ``edits`` give ``program``.

    Args:
        program: of ``model``, RAISED or PLANNED.
    """
    edits = list(edits)
    edited, result = apply(program, edits), copy.deepcopy(model)
    with torch.no_grad():
        for name in dict.fromkeys(axis.param for edit in edits for axis in edit.site.axes):
            result.get_parameter(name).copy_(edited.tensor(name))  # in place, so that tied weights stay tied
    return result


def raised(captured: Program) -> Program:
    """The program that an analysis is made of."""
    recipe, target = Recipe.parse(SCHEMES[0]), pipeline.load_target(TARGET)
    return pipeline.run(captured, recipe, target, until="RAISED")["RAISED"]


# -------------------------------------------------------------------------------------------------------- measure


def measure(seed: int) -> dict[str, Any]:
    """Perplexity of each row and scheme, and of the two float models."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ids = torch.tensor(tokenizer(evaluation_text()).input_ids)
    assert len(ids) >= TOKENS + CALIBRATION
    batches = ids[-CALIBRATION:].view(-1, 4, 256)
    captured = pipeline.capture(model)
    program = raised(captured)
    other = folded(model, program, outliers(analyse(program), seed))
    models = {BEFORE: (model, captured), AFTER: (other, pipeline.capture(other))}
    record: dict[str, Any] = {"seed": seed, "tokens": TOKENS, "calibration": CALIBRATION, "float": {}, "rows": []}
    for name, (one, _) in models.items():
        record["float"][name] = _perplexity(one, tokenizer)
        print(f"{record['float'][name]:8.3f}  float, {name}", flush=True)
    for row in ROWS:
        values = {}
        for scheme in row.schemes:
            began = time.perf_counter()
            values[scheme] = _perplexity(compiled(*models[row.model], row.recipe(scheme), batches), tokenizer)
            seconds = time.perf_counter() - began
            print(f"{values[scheme]:8.3f}  {scheme}, {row.model}, {row} ({seconds:.0f} s)", flush=True)
        record["rows"].append({"model": row.model, "method": str(row), "perplexity": values})
    return record


def compiled(model: nn.Module, captured: Program, recipe: Recipe, batches: Iterable[torch.Tensor]) -> nn.Module:
    """As ``qpass.compile``, with a capture that is made once for all recipes."""
    trace = pipeline.run(captured, recipe, pipeline.load_target(TARGET), calibration=list(batches))
    return pipeline.build(model, trace, target=TARGET)


def _perplexity(model: nn.Module, tokenizer: Any) -> float:
    return perplexity(model, tokenizer, evaluation_text(), max_tokens=TOKENS)


# --------------------------------------------------------------------------------------------------------- report


def save(record: dict[str, Any]) -> None:
    """Put one run into the JSON file, in place of an older one with the same seed, and remake the page's tables."""
    kept = json.loads(RAW.read_text()) if RAW.exists() else {}
    kept[str(record["seed"])] = record | {"machine": describe_machine(torch.get_num_threads())}
    RAW.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *(tables(kept)), END]) + rest.partition(END)[2])


def tables(kept: dict[str, Any]) -> list[str]:
    lines = []
    for seed, record in sorted(kept.items(), key=lambda item: int(item[0])):
        machine = record["machine"]
        versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers"))
        floats = ", ".join(f"{value:.3f} {name}" for name, value in record["float"].items())
        lines += [f"### Seed {seed}", "", f"`python -m tests.bench.smoothquant --seed {seed}`, {machine['date']}, "
                  f"{versions}, target `{TARGET}`.", f"Float: {floats}."]  # fmt: skip
        lines += ["", f"| model | method | {' | '.join(f'`{scheme}`' for scheme in SCHEMES)} |"]
        lines += ["|---|---|" + "---|" * len(SCHEMES)]
        for row in record["rows"]:
            cells = [_cell(row["perplexity"].get(scheme)) for scheme in SCHEMES]
            lines.append(f"| {row['model']} | {row['method']} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _cell(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the outlier channels")
    args = parser.parse_args()
    disable_progress_bar()
    save(measure(args.seed))


if __name__ == "__main__":
    main()
