"""Makes ``docs/integer-accuracy.md`` from ``docs/integer-accuracy.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RAW = DOCS / "integer-accuracy.md", DOCS / "integer-accuracy.json"
COMMAND = "python -m tests.bench.integer_accuracy --train wikitext-2/train.txt"
TITLES = {
    "fake": "fake-quantized linears",
    "matmuls": "fake-quantized, attention's inputs too",
    "precise": "integer, `precise`",
    "paper": "integer, `paper`",
    "literal": "integer, `literal`",
}
GLOBS = " ".join(f"'*/*/{form}'" for form in TITLES)
STEPS = (("matmuls", "products of matrices alone"), ("{}: + softmax", "+ softmax"), ("{}: + SwiGLU", "+ SwiGLU"),
         ("{}", "+ norm: integer-only"))  # fmt: skip
CLIPS = ("8", "10", "12", "15", "20", "none")
PLAIN = {"paper: c = 15": "paper", "precise: c = none": "precise"}

HEAD = """# What integer-only costs in accuracy

Made by `{command}`; the tables name what `--only` picks of it. Numbers are in `integer-accuracy.json`. Do not edit.

The shipped Llama (hidden 256, 6 layers) on the first {tokens:,} tokens of the shipped WikiText-2 test text, in windows
of {window}; target `reference`; torch {torch}, transformers {transformers}, {date}. A cell is the perplexity and,
against the float model's logits, 1000 times the mean KL (nats) and the relative RMS error. Float: **{float:.3f}**.

On so few tokens a perplexity is above or below the float model's by chance, by about as much as W8A8 costs; KL and the
error of the logits are not, and they are what to compare. Calibration, where it is needed (FSBR, and the static scales
of norms' inputs in `paper` and `literal`): {calibration} tokens of the training split. The logarithms of the score are
computed in float, outside of the integer program.
"""

MODES = """
## Modes and schemes

`--only {globs}`

Weights: one symmetric scale a channel; inputs: one asymmetric scale a token; the head too. Queries, keys and values
have 8 bits in every scheme, but not in the first column, where they are in float. "Ratio": the logits' error of
`precise` over that of fake quantization of the same tensors, the second column. FSBR is learned with clipping, {steps}
steps a block.

| scheme | method | {titles} | ratio |
|---|---|{rules}---|
"""

LONGER = """
On {tokens:,} tokens, where chance is less (`--tokens {tokens} --only 'W4A4/nearest/*'`, the JSON file moved away first;
float {float:.3f}):

| scheme | method | {titles} |
|---|---|{rules}
"""

WHY = """
## Where integer-only differs from fake quantization, and why

- `precise` computes what fake quantization computes. The same codes go into each product; products and their sums are
  exact; what is between them, norm, softmax, SwiGLU and residual sums, is within 1e-4 of its row. Codes differ only
  where a value lies that near the edge between two of them, so its error is that of rounding: a ratio of 1, above or
  below it by what the moved codes change.
- What `precise` adds to fake quantization of linears is the 8 bits of queries, keys and values, which are operands of
  products: the difference between the first two columns.
- `paper` rounds the operands of each operator that is not linear to 8 bits: scores, probabilities, gate and up, inputs
  of norms. Each is one more error like that of a linear's input, and they add up as squares do. Beside the error of 4
  or 6 bits in the linears it hardly shows.
- `literal` is ruined by its operators and not by its 8 bits, which `paper` has too. DI-Exp without headroom makes zero
  of all that is four octaves and more below a row's maximum, and probabilities are floored to 7 bits: long rows lose
  their sum. In DI-SwiGLU both exponentials vanish below the row's maximum, and a gate becomes 0 or 1: this is most of
  the loss. In DI-Norm scales are brought to one by integer ratios, which are off by up to a factor of two.
- FSBR makes what is rounded easier to round, so it is worth most where few bits are left, and the same in `precise`
  and `paper`, where its 1/s is a dyadic vector in the sigmoid's argument. `literal` divides integers by a rounded s.
"""

ONE = """
## Operators made integer one at a time

`--only 'W8A8/nearest/*: + *' {globs}`

W8A8, rounded to nearest. What is not yet integer is in float, which takes such a program out of the integer-only
guarantee: it is made by `tests/bench/integer_study.py`, and `qpass.verify_integer_only` refuses it. Each row has the
operators of the row above as well.

| operators | `precise` | `paper` | `literal` |
|---|---|---|---|
"""

CLIP = """
## c of the clipped softmax

`--only 'W8A8/nearest/*: c = *' W8A8/nearest/precise W8A8/nearest/paper`

W8A8, rounded to nearest. In `precise` scores keep their int32, and c only says from where on a probability is zero, so
it is off by default; in `paper` c is the range that 8 bits cover, 15 by default.

| c | {heads} |
|---|{rules}
"""

MANTISSA = """
## The paper's 8-bit mantissas of scales

`--only 'W8A8/nearest/*: mantissa 8' W8A8/nearest/precise W8A8/nearest/paper`

Codes are chosen for the scale that is stored, which is rounded up to 8 bits for activations and to the nearest for
weights, so a short mantissa costs range and nothing else.

| mantissas | `precise` | `paper` |
|---|---|---|
"""


def write(kept: dict[str, Any]) -> None:
    """Remake the page."""
    if "float" not in kept:
        return
    cells, machine, settings = kept["cells"], kept["machine"], kept["settings"]
    head = HEAD.format(command=COMMAND, tokens=kept["tokens"], float=kept["float"]["perplexity"], **machine, **settings)
    tables = [*_steps(cells), *_clips(cells), *_mantissas(cells)]
    parts = [head, *_modes(cells, settings["steps"]), *_longer(kept), WHY, *tables]
    PAGE.write_text("".join(parts))


def _modes(cells: dict[str, Any], steps: int) -> list[str]:
    titles, rules = " | ".join(TITLES.values()), "---|" * len(TITLES)
    lines = [MODES.format(globs=GLOBS, titles=titles, rules=rules, steps=steps)]
    for scheme in ("W8A8", "W6A6", "W4A8", "W4A4"):
        for method in ("nearest", "FSBR"):
            found = [cells.get(f"{scheme}/{method}/{form}") for form in TITLES]
            ratio = f"{found[2]['error'] / found[1]['error']:.3f}" if found[1] and found[2] else "not measured"
            lines.append(f"| {scheme} | {method} | {' | '.join(map(_cell, found))} | {ratio} |\n")
    return lines


def _longer(kept: dict[str, Any]) -> list[str]:
    if "longer" not in kept:
        return []
    longer, forms = kept["longer"], [form for form in TITLES if form != "literal"]
    lines = [LONGER.format(tokens=longer["tokens"], float=longer["float"]["perplexity"], rules="---|" * len(forms),
                           titles=" | ".join(TITLES[form] for form in forms))]  # fmt: skip
    found = [longer["cells"].get(f"W4A4/nearest/{form}") for form in forms]
    return [*lines, f"| W4A4 | nearest | {' | '.join(map(_cell, found))} |\n"]


def _steps(cells: dict[str, Any]) -> list[str]:
    lines = [ONE.format(globs=GLOBS.replace("*/*", "W8A8/nearest"))]
    for form, title in STEPS:
        found = [cells.get(f"W8A8/nearest/{form.format(mode)}") for mode in ("precise", "paper", "literal")]
        lines.append(f"| {title} | {' | '.join(map(_cell, found))} |\n")
    return lines


def _clips(cells: dict[str, Any]) -> list[str]:
    lines = [CLIP.format(heads=" | ".join(CLIPS), rules="---|" * len(CLIPS))]
    for mode in ("precise", "paper"):
        forms = [PLAIN.get(f"{mode}: c = {c}", f"{mode}: c = {c}") for c in CLIPS]
        found = [cells.get(f"W8A8/nearest/{form}") for form in forms]
        lines.append(f"| `{mode}` | {' | '.join(map(_cell, found))} |\n")
    return lines


def _mantissas(cells: dict[str, Any]) -> list[str]:
    lines = [MANTISSA]
    for title, suffix in (("15 bits", ""), ("8 bits", ": mantissa 8")):
        found = [cells.get(f"W8A8/nearest/{mode}{suffix}") for mode in ("precise", "paper")]
        lines.append(f"| {title} | {' | '.join(map(_cell, found))} |\n")
    return lines


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    return f"{found['perplexity']:.3f}, {1000 * found['kl']:.2f}, {found['error']:.4f}"
