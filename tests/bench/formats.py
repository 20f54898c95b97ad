"""Encode and decode of every named format against a plain copy: ``python -m tests.bench.formats``.

Each time is divided by that of copying the bfloat16 tensor, taken right after it in the same process, so that a machine
that slows down slows both. Writes ``docs/benchmarks/formats.json`` and ``formats.md``. A minute or two on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qpass.formats import NAMED, SCHEMES, Format
from qpass.numerics import codec

from .report import describe_machine

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
WEIGHT, INPUT = (2048, 4096), (512, 4096)
ROUNDS = 5
PAGE = """# Encode and decode of formats

Made by `python -m tests.bench.formats`; the numbers are in `formats.json`. Do not edit.

Each cell is the time of one call over the time of copying the same bfloat16 tensor into another one, the median of
{rounds} such ratios; each copy is timed right after its call. 1 would be as fast as memory allows. A weight is
{weight}, an input {input}. Encode a weight: choose scales, then codes, as when a model is compiled. Encode an input:
scales and codes of each row, in eager PyTorch as the target `reference` does; compiled for another target these are
part of a kernel or of generated code. Decode gives bfloat16.

{machine}

A copy of the weight took {copy_weight:.2f} ms ({rate_weight:.1f} GB/s read and written), of the input {copy_input:.2f} ms
({rate_input:.1f} GB/s).
"""


def weights() -> dict[str, Format]:
    """Every format that a named scheme gives a weight, and the named formats, by their text."""
    found = [*NAMED.values(), *(scheme.weight for scheme in SCHEMES.values())]
    return {str(fmt): fmt for fmt in found if fmt.granularity != "token"}


def inputs() -> dict[str, Format]:
    """Every format that a named scheme gives an input; a static scale is not computed, so those are left out."""
    found = (scheme.input for scheme in SCHEMES.values() if scheme.input and not scheme.input.static)
    return {str(fmt): fmt for fmt in found}


def measure(rounds: int, weight: tuple[int, int] = WEIGHT, rows: tuple[int, int] = INPUT) -> dict[str, Any]:
    """Ratios of every format, and the copies' seconds."""
    generator = torch.Generator().manual_seed(0)
    w, x = (torch.randn(shape, generator=generator).bfloat16() for shape in (weight, rows))
    record: dict[str, Any] = {"rounds": rounds, "weight": weight, "input": rows, "copies": {}, "weights": {},
                              "inputs": {}}  # fmt: skip
    for kind, tensor, formats, calls in (("weights", w, weights(), _of_weight), ("inputs", x, inputs(), _of_input)):
        copies: list[float] = []
        for text, fmt in formats.items():
            record[kind][text] = {name: _ratio(call, tensor, rounds, copies) for name, call in calls(tensor, fmt).items()}
            print(f"{kind:8} {text:28} " + "  ".join(f"{name} {ratio:.1f}" for name, ratio in record[kind][text].items()),
                  flush=True)  # fmt: skip
        record["copies"][kind] = median(copies)
    return record


def _of_weight(w: Tensor, fmt: Format) -> dict[str, Callable[[], Any]]:
    found = codec.choose(w, fmt)
    codes = codec.quantize(w, found, fmt)
    return {"encode": lambda: codec.quantize(w, codec.choose(w, fmt), fmt),
            "decode": lambda: codec.dequantize(codes, found, fmt, w.dtype)}  # fmt: skip


def _of_input(x: Tensor, fmt: Format) -> dict[str, Callable[[], Any]]:
    parts = codec.quantize_rows(x, fmt)
    return {"encode": lambda: codec.quantize_rows(x, fmt),
            "decode": lambda: codec.dequantize_rows(*parts, fmt, x.dtype)}  # fmt: skip


def _ratio(call: Callable[[], Any], tensor: Tensor, rounds: int, copies: list[float]) -> float:
    other = torch.empty_like(tensor)
    call(), other.copy_(tensor)
    ratios = []
    for _ in range(rounds):
        spent = _seconds(call)
        copied = min(_seconds(lambda: other.copy_(tensor)) for _ in range(3))
        copies.append(copied)
        ratios.append(spent / copied)
    return median(ratios)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def page(record: dict[str, Any]) -> str:
    """The text of ``formats.md``."""
    copies = {kind: record["copies"][f"{kind}s"] for kind in ("weight", "input")}
    sizes = {kind: record[kind][0] * record[kind][1] * 2 for kind in copies}
    values = {f"rate_{kind}": 2 * sizes[kind] / copies[kind] / 1e9 for kind in copies}
    values |= {f"copy_{kind}": 1e3 * copies[kind] for kind in copies}
    shapes = {kind: " x ".join(map(str, record[kind])) for kind in copies}
    machine = ", ".join(f"{key} {value}" for key, value in sorted(record["machine"].items()))
    lines = [PAGE.format(rounds=record["rounds"], machine=machine, **shapes, **values)]
    for kind in ("weights", "inputs"):
        lines += [f"## {kind.capitalize()}", "", "| format | encode | decode |", "|---|---:|---:|"]
        lines += [f"| `{text}` | {row['encode']:.1f} | {row['decode']:.1f} |" for text, row in record[kind].items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    record = measure(args.rounds) | {"machine": describe_machine(torch.get_num_threads())}
    if not args.dry:
        (FOLDER / "formats.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        (FOLDER / "formats.md").write_text(page(record))


if __name__ == "__main__":
    main()
