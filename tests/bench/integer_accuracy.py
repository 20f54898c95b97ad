"""What integer-only costs: ``python -m tests.bench.integer_accuracy --train wikitext-2/train.txt``.

The shipped Llama on the shipped text, fake-quantized and integer-only in each mode, in four schemes, as trained and
with FSBR; the clip of the softmax; operators made integer one at a time. Perplexity, distance of the next-token
distributions (KL, nats) and of the logits (relative RMS) from the float model's. What is computed in float stands
outside of the integer program: the logarithms of the score. Writes ``docs/integer-accuracy.json`` after each cell, in
which cells that are there are not measured again, and ``docs/integer-accuracy.md``. About 15 seconds a cell on one
core, and a minute or more to learn each scheme's FSBR.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qpass import pipeline
from qpass.assets import evaluation_text, model_path
from qpass.formats.integer import Integer
from qpass.graph.integer_only import verify_integer_only
from qpass.graph.program import Program, copy_graph
from qpass.lowering.reference import DEQUANTIZE
from qpass.observe.feed import from_texts
from qpass.passes.fuse import fuse
from qpass.passes.integerise import integerise
from qpass.passes.lower import lower
from qpass.passes.quantise import quantise
from qpass.recipe import Recipe
from qpass.stages import check

from . import integer_report
from .integer_study import in_float
from .report import describe_machine

TARGET = "reference"
WINDOW, LENGTH, BATCHES, STEPS = 256, 128, 16, 64
TRAIN = 1_000_000  # letters of the training split
SCHEMES = {"W8A8": (8, 8), "W6A6": (6, 6), "W4A8": (4, 8), "W4A4": (4, 4)}
METHODS: dict[str, list[Any]] = {"nearest": [], "FSBR": [{"lwc": {"rate": 0.05}}, {"fsbr": {"rate": 0.01}}]}
FAKE, BASE = "fake", "matmuls"


@dataclass(frozen=True)
class Form:
    """How one program is computed: options of the integer program, and operators that stay in float for study."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    floats: tuple[str, ...] = ()


FORMS = (
    Form(FAKE),
    Form(BASE, {}, ("softmax", "SwiGLU", "norm")),
    *(Form(mode, {"mode": mode}) for mode in ("precise", "paper", "literal")),
)
MORE = (
    *(Form(f"{mode}: + softmax", {"mode": mode}, ("SwiGLU", "norm")) for mode in ("literal", "paper", "precise")),
    *(Form(f"{mode}: + SwiGLU", {"mode": mode}, ("norm",)) for mode in ("literal", "paper", "precise")),
    *(Form(f"paper: c = {c or 'none'}", {"mode": "paper", "clip": c}) for c in (8, 10, 12, 20, 0)),
    *(Form(f"precise: c = {c or 'none'}", {"clip": c}) for c in (8, 10, 12, 15, 20)),
    *(Form(f"{mode}: mantissa 8", {"mode": mode, "mantissa": 8}) for mode in ("precise", "paper")),
)
"""For W8A8, rounded to nearest. What is not here is in ``FORMS``: c = 15 of ``paper`` and no clip of ``precise``."""


def forms(scheme: str, method: str) -> tuple[Form, ...]:
    """What is measured of one scheme and method."""
    return (*FORMS, *MORE) if (scheme, method) == ("W8A8", "nearest") else FORMS


def recipe(scheme: str, method: str) -> Recipe:
    """As ``int-only-wNaM``, in the mode whose programs have all that the other two need."""
    weight, inputs = SCHEMES[scheme]
    learning = {"steps": STEPS, "batches": BATCHES, "progress": False}
    lines = {"*": f"int{weight}:channel:sym x int{inputs}:token:asym"}
    return Recipe.parse({"methods": METHODS[method], "learning": learning, "linears": lines,
                         "integer": {"mode": "paper", "context": WINDOW}})  # fmt: skip


def lowered(solved: Program, form: Form, eps: float) -> Program:
    """The program of one form; integer-only unless operators of it are in float or it is fake quantization.

    Integer ops are run as they are, each its own meaning, which is what lowering them would spell out.
    """
    target = pipeline.load_target(TARGET)
    if form.name == FAKE:
        return check(lower(check(fuse(check(quantise(_planned(solved))))), target.providers))
    program = check(integerise(solved, Integer(context=WINDOW, **form.options)))
    if form.floats:
        return in_float(program, form.floats, eps)
    return verify_integer_only(program)


def _planned(solved: Program) -> Program:
    """The program of an integer-only recipe with a kernel for each linear, as other recipes have."""
    graph, _ = copy_graph(solved.graph)
    for node in graph.nodes:
        if getattr(node.meta.get("plan"), "scheme", None) is not None:
            node.meta["plan"] = replace(node.meta["plan"], kernel=DEQUANTIZE)
    return solved.with_graph(graph)


@dataclass(frozen=True)
class Truth:
    """Windows [N, T] and the float model's logits for them, float32 [N, T, V]."""

    windows: Tensor
    logits: Tensor


def score(model: Any, truth: Truth) -> dict[str, float]:
    """Perplexity, mean KL from the float model, relative RMS error of the logits."""
    sums = torch.zeros(4, dtype=torch.float64)
    for rows, want in zip(truth.windows.split(4), truth.logits.split(4)):
        got = logits_of(model, rows).double()
        want = want.double()
        p, q = want.log_softmax(-1), got.log_softmax(-1)
        sums[0] += F.nll_loss(q[:, :-1].transpose(1, 2), rows[:, 1:], reduction="sum")
        sums[1] += F.kl_div(q, p, reduction="sum", log_target=True)
        sums[2] += (got - want).square().sum()
        sums[3] += want.square().sum()
    count, length = truth.windows.shape
    mean = float(sums[0]) / (count * (length - 1))
    return {"perplexity": math.exp(min(mean, 700.0)), "kl": float(sums[1]) / (count * length),
            "error": math.sqrt(float(sums[2] / sums[3]))}  # fmt: skip


@torch.no_grad()
def logits_of(model: Any, rows: Tensor) -> Tensor:
    found: Tensor = model(input_ids=rows, use_cache=False).logits
    return found


def measure(train: Path, tokens: int, wanted: Callable[[str], bool]) -> None:
    """All cells that are wanted and that the file does not have yet."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    ids = torch.tensor(tokenizer(evaluation_text()).input_ids[: tokens // WINDOW * WINDOW]).view(-1, WINDOW)
    truth = Truth(ids, torch.cat([logits_of(model, rows) for rows in ids.split(4)]))
    batches = from_texts(train.read_text(encoding="utf-8")[:TRAIN], tokenizer, length=LENGTH, batches=BATCHES, seed=0)
    kept = load()
    if kept.get("tokens", ids.numel()) != ids.numel():
        raise SystemExit(f"{integer_report.RAW} is of {kept['tokens']} tokens: move it away, or pass --tokens")
    save(kept | {"tokens": ids.numel(), "float": score(model, truth), "settings": {
        "window": WINDOW, "calibration": f"{BATCHES} x {LENGTH}", "steps": STEPS}})  # fmt: skip
    captured = pipeline.capture(model)
    for method in METHODS:
        for scheme in SCHEMES:
            left = [form for form in forms(scheme, method) if wanted(f"{scheme}/{method}/{form.name}")
                    and f"{scheme}/{method}/{form.name}" not in load()["cells"]]  # fmt: skip
            if left:
                cells(model, captured, truth, batches, (scheme, method), left)


def cells(
    model: Any, captured: Program, truth: Truth, batches: Sequence[Tensor], place: tuple[str, str], left: list[Form]
) -> None:
    """The cells of one scheme and method: learned once."""
    began = time.perf_counter()
    target = pipeline.load_target(TARGET)
    trace = pipeline.run(captured, recipe(*place), target, calibration=batches, until="SOLVED")
    learned = time.perf_counter() - began
    for form in left:
        began = time.perf_counter()
        program = lowered(trace["SOLVED"], form, model.config.rms_norm_eps)
        made = replace(trace, stages={**trace.stages, "LOWERED": program})
        found = score(pipeline.build(model, made, target=TARGET), truth)
        found |= {"seconds": time.perf_counter() - began, "learned": learned}
        key = "/".join((*place, form.name))
        kept = load()
        kept["cells"][key] = found
        save(kept)
        print(f"{found['perplexity']:10.3f} {found['kl']:.2e} {found['error']:.4f}  {key} ({found['seconds']:.0f} s)",
              flush=True)  # fmt: skip


def load() -> dict[str, Any]:
    """What was measured before."""
    found: dict[str, Any] = json.loads(integer_report.RAW.read_text()) if integer_report.RAW.exists() else {}
    found.setdefault("cells", {})
    return found


def save(kept: dict[str, Any]) -> None:
    kept["machine"] = describe_machine(torch.get_num_threads())
    integer_report.RAW.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    integer_report.write(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, help="WikiText-2's training split; without it, only the page is made")
    parser.add_argument("--tokens", type=int, default=4096, help="of the shipped text, from its start")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="GLOB", help="cells such as 'W8A8/nearest/*'")
    args = parser.parse_args()
    disable_progress_bar()
    if args.train is None:
        integer_report.write(load())
    else:
        measure(args.train, args.tokens, lambda key: any(fnmatch.fnmatchcase(key, glob) for glob in args.only))


if __name__ == "__main__":
    main()
