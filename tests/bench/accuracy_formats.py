"""ZeroQuant-FP's table on the shipped Llama: ``python -m tests.bench.accuracy_formats``.

Perplexity of every scheme of the paper and of today's four-bit formats, and how far its next-token distributions are
from the float model's (KL, in nats), each rounded to nearest, with LoRC, with GPTQ, and with both. Writes
``docs/accuracy_formats.json`` after each cell and the table of ``docs/accuracy.md`` at the end. What is in the file is
not measured again. About fifteen minutes on one core. ``--calibration FILE`` is a text to calibrate on, such as the
training split of WikiText-2; without it the end of the shipped text is used, which is not scored.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.debug.evaluate import ids_perplexity, token_divergence
from qpass.debug.weight_error import weight_errors
from qpass.recipe import Recipe

from .report import describe_machine

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RAW = DOCS / "accuracy.md", DOCS / "accuracy_formats.json"
BEGIN, END = "<!-- formats: begin -->", "<!-- formats: end -->"
TARGET = "reference"
WINDOW = 256
TOKENS, DIVERGENCE = 10_240, 4_096  # scored, from the start of the text
CALIBRATION = 8_192  # from its end: other articles

# Named as the paper names them: what weights are, then what inputs are.
SCHEMES = {
    "w8a8-int8": "W8A8 INT-INT",
    "w8a8-int-fp": "W8A8 INT-FP",
    "w8a8-fp8": "W8A8 FP-FP",
    "w4a8-int": "W4A8 INT-INT",
    "w4a8-int-fp": "W4A8 INT-FP",
    "w4a8-fp": "W4A8 FP-FP",
    "w4a8-fp-m1": "W4A8 FP-FP, M1",
    "w4a8-fp-m2": "W4A8 FP-FP, M2",
    "w4a8-fp-m2plus": "W4A8 FP-FP, M2+",
    "w4a8-fp-e3m0": "W4A8 E3M0-FP",
    "mxfp4": "MXFP4, W4A4",
    "nvfp4": "NVFP4, W4A4",
    "mxfp4a16": "MXFP4, W4A16",
    "nvfp4a16": "NVFP4, W4A16",
    "w4a16-g128": "INT4 g128, W4A16",
}
METHODS = {"": "nearest", "lorc+": "LoRC", "gptq+": "GPTQ", "gptq+lorc+": "GPTQ, LoRC"}


def measure(calibration: str | None, only: list[str]) -> dict[str, Any]:
    """Perplexity of each recipe, those that are there already left out; saved after each."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ids = torch.tensor(tokenizer(evaluation_text()).input_ids)
    data = ids[-CALIBRATION:]
    if calibration is not None:
        text = Path(calibration).read_text(encoding="utf-8")[: CALIBRATION * 32]
        data = torch.tensor(tokenizer(text).input_ids[:CALIBRATION])
    batches = list(data.view(-1, 4, WINDOW))
    record = load()
    record |= {"machine": describe_machine(torch.get_num_threads()), "tokens": TOKENS, "calibration": len(data),
               "text": "the end of the shipped text" if calibration is None else Path(calibration).name}  # fmt: skip
    captured = pipeline.capture(model)
    record["float"] = ids_perplexity(model, ids[:TOKENS], window=WINDOW)
    for name in [method + scheme for method in METHODS for scheme in SCHEMES if scheme in (only or SCHEMES)]:
        cell = record.setdefault("cells", {}).setdefault(name, {})
        if cell.keys() >= {"perplexity", "kl"}:
            continue
        began = time.perf_counter()
        trace = pipeline.run(captured, Recipe.parse(name), pipeline.load_target(TARGET), calibration=batches)
        built = pipeline.build(model, trace, target=TARGET)
        if "perplexity" not in cell:
            errors = weight_errors(trace["SOLVED"], trace["QUANTISED"])
            assert errors is not None
            cell |= {"perplexity": ids_perplexity(built, ids[:TOKENS], window=WINDOW), "bits": errors.bits,
                     "sqnr": errors.sqnr_db}  # fmt: skip
        cell["kl"] = token_divergence(model, built, ids[:DIVERGENCE].view(-1, WINDOW))["mean_kl"]
        seconds = time.perf_counter() - began
        print(f"{cell['perplexity']:8.3f}  {cell['kl']:.5f}  {name} ({seconds:.0f} s)", flush=True)
        RAW.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return record


def load() -> dict[str, Any]:
    """What was measured before."""
    return json.loads(RAW.read_text()) if RAW.exists() else {}


def table(record: dict[str, Any]) -> list[str]:
    """The lines between the markers."""
    machine, cells = record["machine"], record["cells"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers"))
    lines = [f"`python -m tests.bench.accuracy_formats`, {machine['date']}, {versions}. Float: {record['float']:.3f}. "
             f"Calibration: {record['calibration']:,} tokens of {record['text']}.", ""]  # fmt: skip
    titles = [f"{what}, {name}" for what in ("perplexity", "1000 KL") for name in METHODS.values()]
    lines += [f"| | scheme | bits per weight | {' | '.join(titles)} |", "|---|---|---|" + "---|" * len(titles)]
    for scheme, title in SCHEMES.items():
        values = [cells.get(method + scheme, {}) for method in METHODS]
        if any(values):
            numbers = [_number(value.get("perplexity"), 1) for value in values]
            numbers += [_number(value.get("kl"), 1000) for value in values]
            bits = next(value for value in values if value)["bits"]
            lines.append(f"| {title} | `{scheme}` | {bits:.3f} | {' | '.join(numbers)} |")
    return lines


def _number(value: float | None, times: float) -> str:
    return "not measured" if value is None else f"{value * times:.2f}"


def save(record: dict[str, Any]) -> None:
    """Remake the table of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *table(record), "", END]) + rest.partition(END)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", metavar="FILE", help="text to calibrate on (default: the end of the shipped)")
    parser.add_argument("--only", nargs="+", metavar="SCHEME", default=[], choices=SCHEMES, help="these schemes only")
    args = parser.parse_args()
    disable_progress_bar()
    save(measure(args.calibration, args.only))


if __name__ == "__main__":
    main()
