"""How fast each format is encoded and decoded: ``python -m tests.bench.formats``. About a minute on one core.

Eager PyTorch on the CPU, as compiling a model and the reference lowering use it; kernels that compute in a format do
not decode like this. Each figure is a ratio of medians to a plain copy of the same float tensor in the same process: 5
is the time of five copies. Writes ``docs/benchmarks/formats.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from qpass.formats import SCHEMES, Format
from qpass.numerics import codec

from .report import describe_machine

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "formats.md"
ROWS, WIDTH = 1024, 4096
HEAD = """# Encoding and decoding formats

Made by `python -m tests.bench.formats`. Do not edit.

Time of one call over the time of a copy of the same float32 tensor ({rows} x {width}) in the same process, medians of
{repeats}: eager PyTorch, one thread. Scales are chosen, codes made (encode), and values made of them (decode). Inputs
are encoded row by row, as when a model runs without a kernel that has it fused. No kernel of a target is measured here.

{machine}
"""


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    call()
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return median(samples)


def weight_rows(values: Tensor, copy: Callable[[], float], repeats: int) -> list[tuple[str, float, float, float]]:
    """Format, ratios of choosing scales, encoding and decoding, for every weight format that has a name."""
    rows = []
    for text in sorted({str(scheme.weight) for scheme in SCHEMES.values()}):
        fmt = Format.parse(text)
        found = codec.choose(values, fmt)
        codes = codec.quantize(values, found, fmt)
        calls = (lambda f=fmt: codec.choose(values, f), lambda f=fmt, s=found: codec.quantize(values, s, f),
                 lambda f=fmt, s=found, c=codes: codec.dequantize(c, s, f, torch.float32))  # fmt: skip
        base = copy()
        rows.append((text, *(seconds(call, repeats) / base for call in calls)))
    return rows


def input_rows(values: Tensor, copy: Callable[[], float], repeats: int) -> list[tuple[str, float, float]]:
    """Format, ratios of encoding and decoding, for every input format that has a name."""
    rows = []
    for text in sorted({str(scheme.input) for scheme in SCHEMES.values() if scheme.input and not scheme.input.static}):
        fmt = Format.parse(text)
        parts = codec.quantize_rows(values, fmt)
        calls = (lambda f=fmt: codec.quantize_rows(values, f),
                 lambda f=fmt, p=parts: codec.dequantize_rows(*p, f, torch.float32))  # fmt: skip
        base = copy()
        rows.append((text, *(seconds(call, repeats) / base for call in calls)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values, target = torch.randn(ROWS, WIDTH), torch.empty(ROWS, WIDTH)

    def copy() -> float:
        return seconds(lambda: target.copy_(values), repeats)

    facts = ", ".join(f"{name} {value}" for name, value in sorted(describe_machine(1).items()) if name != "clock")
    lines = [HEAD.format(rows=ROWS, width=WIDTH, repeats=repeats, machine=facts)]
    lines += ["## Weights\n", "| format | choose scales | encode | decode |", "|---|---|---|---|"]
    lines += [f"| `{text}` | {one:.1f} | {two:.1f} | {three:.1f} |"
              for text, one, two, three in weight_rows(values, copy, repeats)]  # fmt: skip
    lines += ["\n## Inputs\n", "| format | encode | decode |", "|---|---|---|"]
    lines += [f"| `{text}` | {one:.1f} | {two:.1f} |" for text, one, two in input_rows(values, copy, repeats)]
    PAGE.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
