"""Write docs/pipeline.md: the tiny model of tests/tiny.py at each stage. Run from the repository root.

    python docs/generate_pipeline.py           write the file
    python docs/generate_pipeline.py --check   exit 1 if the file is out of date
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import Dim

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qpass.graph.program import Program  # noqa: E402
from qpass.graph.show import show  # noqa: E402
from qpass.graph.values import op_name  # noqa: E402
from qpass.pipeline import load_target, run  # noqa: E402
from qpass.recipe import Recipe  # noqa: E402
from tests import tiny  # noqa: E402

PAGE = ROOT / "docs" / "pipeline.md"
RECIPE, TARGET = "w8a8-int8", "reference"

INTRO = f"""\
<!-- Written by docs/generate_pipeline.py. Do not edit; run the script. -->

# One model at every stage

A decoder of one layer (hidden 16, FFN 24, 4 query and 2 key heads) with random weights, from `tests/tiny.py`, with the
recipe `{RECIPE}` on the target `{TARGET}`. Each block is `qpass.show(program, fingerprints=False)`. In a model with
more layers, those that read the same print once: `... model.layers.2-5 as model.layers.1`.

How to read a line: `%name = op(arguments) : type[shape]   # which rule made it, or what the plan says`. A `%` marks a
computed value; a name without it is a parameter. `qpass.` and `torchao.` mark ops that are not ATen.
"""

STAGES = {
    "CAPTURED": "What `torch.export` gives, with value names taken from the modules.",
    "NORMAL": "One spelling for each thing: casts that do nothing, `alias`, `detach` and assertions are gone.",
    "RAISED": "Norms, gated activations, rotary embedding and attention are single ops. Exact.",
    "PLANNED": "Every linear carries a scheme and a kernel, or the reason to stay in float.",
    "SOLVED": "The methods of the recipe have run. Round to nearest needs none, so the graph is the same.",
    "QUANTISED": "Quantize and dequantize around each planned linear. Weights are codes and scales.",
    "FUSED": "Quantize and dequantize are inside single ops, which carry their formats.",
    "LOWERED": "No op of the dialect is left: each linear is its kernel's call. On `reference` that is dequantize "
    "and a float linear; on `cpu` it is one call of `qpass_cpu.int8_linear` where our kernels run.",
}


def page() -> str:
    """The text of docs/pipeline.md."""
    torch.manual_seed(0)
    with torch.no_grad():
        dims = {"ids": {0: Dim("batch", min=1, max=64), 1: Dim("seq", min=2, max=64)}}
        program = tiny.export(tiny.Decoder(layers=1), tiny.ids(), dims=dims)
        trace = run(program, Recipe.parse(RECIPE), load_target(TARGET))
    return "\n".join([INTRO, *(_section(stage, trace[stage]) for stage in trace.stages)])


def _section(stage: str, program: Program) -> str:
    kinds = {op_name(node.target) for node in program.nodes()}
    own = ", ".join(f"`{kind}`" for kind in sorted(kinds) if "." in kind)
    text = show(_named(program), fingerprints=False)
    head = f"{STAGES[stage]} {f'Ops beside ATen: {own}.' if own else ''}".strip()
    count = len(text.splitlines())
    return f"## {stage}\n\n{head}\n\n<details><summary>{count} lines</summary>\n\n```\n{text}```\n\n</details>\n"


def _named(program: Program) -> Program:
    sizes = program.placeholders()[0].meta["val"].shape
    return replace(program, dims={str(size.node.expr): name for size, name in zip(sizes, ("batch", "seq"))})


def main() -> int:
    """Write or check the page; the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
