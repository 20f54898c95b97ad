"""``docs/benchmarks/gpu-h200.md`` from the kept results, or with the targets alone where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
FILE, PAGE = FOLDER / "gpu-h200.json", FOLDER / "gpu-h200.md"

HEAD = """# Speed on an H200

Made by `python -m tests.bench.gpu`, a part at a time; raw numbers are in `gpu-h200.json`. Do not edit.

"""
NOTHING = """**Not yet measured.** No number on this page comes from a GPU: what is known without one, instructions,
registers and shared memory of each kernel, is in [gpu.md](../gpu.md). The commands, each below nine minutes on an H200:

```bash
for part in ceilings decode prefill peers fused integer kv model package; do
    python -m tests.bench.gpu --part $part
done
```

Every part says beforehand how many cases it has and what they may take. Peers are torchao's int8, int4 and FP8 linears
and gemlite's, where they are installed, else named with the reason; `_weight_int4pack_mm`, `_int_mm` and `_scaled_mm`
are beside every linear. A model's bfloat16 is torch.compile in a CUDA graph, as ours is.

Without a GPU, `python -m tests.bench.gpu --dry` builds every case, tiny, and checks it in Triton's interpreter.
"""
TARGETS = """
## Targets

| what | target |
|---|---|
| decode, 4-bit weights, matrices of 50M weights and more | 0.80 of the roofline, 3.0 times bf16 |
| decode, 8-bit weights, the same matrices | 1.9 times bf16 |
| prefill, FP8 and INT8 | 1.75 times bf16, and no slower than `_scaled_mm` |
| FP8 in blocks, prefill | 1.5 times bf16 |
| norm and quantize | 0.85 of the bandwidth of a copy |
| Llama-3-8B's shape, batch 1 | 4-bit weights 2.6 times, 8-bit 1.7 times bf16 of torch.compile with CUDA graphs |
| the same, batch 64 | 4-bit weights with FP8 inputs 1.55 times |
| the same, prefill | 1.6 times |

The roofline of a linear is the longer of its bytes over a copy's bandwidth and its operations over the rate of a dense
dot in that many bits, both as measured on the same machine.
"""


def write_page() -> None:
    """Write the page."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    PAGE.write_text(page(kept))


def page(kept: dict[str, Any]) -> str:
    """Its text."""
    if not kept:
        return HEAD + NOTHING + TARGETS
    rates = {one["name"]: one["rate"] for one in kept.get("ceilings", [])}
    text = HEAD + f"On a {kept['device']['name']}, torch {kept['device']['torch']}.\n" + TARGETS
    text += "\n## Ceilings\n\n| what | rate |\n|---|---|\n"
    text += "".join(f"| {name} | {_rate(name, rate)} |\n" for name, rate in rates.items())
    for part in ("decode", "prefill", "peers"):
        text += _linears(part, kept.get(part, []), rates)
    skipped = {name: why for one in kept.get("peers", []) for name, why in one.get("skipped", {}).items()}
    text += "".join(f"\n{name} was not measured: {why}.\n" for name, why in sorted(skipped.items()))
    text += "\n## Norm and activation with quantize\n\n| kernel | rows | µs | of a copy |\n|---|---|---|---|\n"
    for one in kept.get("fused", []):
        share = one["rate"] / rates["copy"] if "copy" in rates else float("nan")
        text += f"| {one['name']} | {one['rows']} | {one['us']:.1f} | {share:.2f} |\n"
    text += _bytes(kept.get("integer", []) + kept.get("kv", []), rates)
    return text + _models(kept.get("model", [])) + _packages(kept.get("package", []))


def _bytes(records: list[dict[str, Any]], rates: dict[str, float]) -> str:
    """Kernels that are measured by the bytes that they move."""
    text = "\n## Integer-only kernels, and attention over a cache of codes\n\n"
    text += "| kernel | µs | of a copy | times bf16 |\n|---|---|---|---|\n"
    for one in records:
        share = f"{one['rate'] / rates['copy']:.2f}" if "copy" in rates else ""
        beside = f"{one['bf16_us'] / one['us']:.2f}" if "bf16_us" in one else ""
        rows = f", {one['rows']} tokens" if "rows" in one else ""
        text += f"| {one['name']}{rows} | {one['us']:.1f} | {share} | {beside} |\n"
    return text


def _rate(name: str, rate: float) -> str:
    if name == "copy":
        return f"{rate / 1e12:.2f} TB/s"
    return f"{1e6 / rate:.2f} µs" if name == "empty" else f"{rate / 1e12:.0f} TFLOP/s"


def roofline(one: dict[str, Any], rates: dict[str, float]) -> float:
    """Microseconds below which a linear cannot be."""
    n, k, rows = one["n"], one["k"], one["rows"]
    moved = n * k * one["bits"] / 8 + rows * k * (1 if one["eight"] else 2) + 2 * rows * n
    dots = max(rates.get("fp8", 0), rates.get("int8", 0)) if one["eight"] else rates.get("bf16", 0)
    return 1e6 * max(moved / rates["copy"], 2 * n * k * rows / dots if dots else 0)


def _linears(part: str, records: list[dict[str, Any]], rates: dict[str, float]) -> str:
    text = f"\n## Linears, {part}\n\n| shape | rows | format | µs | of the roofline | times faster than | error |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for one in records:
        times = {name: median(each) for name, each in one["us"].items()}
        ours = times.pop("ours", None)
        wrong = "" if one["equal"] and one["error"] <= one["limit"] else " **wrong**"
        if ours is None:
            head = f"| {one['shape']} | {one['rows']} | {one['form']} |"
            text += f"{head} did not run | | | {one['error']:.1e}{wrong} |\n"
            continue
        share = f"{roofline(one, rates) / ours:.2f}" if "copy" in rates else ""
        beside = ", ".join(f"{name} {us / ours:.2f}" for name, us in times.items())
        text += (f"| {one['shape']} | {one['rows']} | {one['form']} | {ours:.1f} | {share} | {beside} | "
                 f"{one['error']:.1e}{wrong} |\n")  # fmt: skip
    return text


def _models(records: list[dict[str, Any]]) -> str:
    text = "\n## Whole models\n\n| work | layers | scheme | ms | times bf16 |\n|---|---|---|---|---|\n"
    base = {(one["what"], one["layers"]): one["ms"] for one in records if one["name"] == "bf16"}
    for one in records:
        ratio = base.get((one["what"], one["layers"]), float("nan")) / one["ms"]
        text += f"| {one['what']} | {one['layers']} | {one['name']} | {one['ms']:.2f} | {ratio:.2f} |\n"
    return text


def _packages(records: list[dict[str, Any]]) -> str:
    """Packages that a fresh process ran, beside the compiled model."""
    text = "\n## Packages\n\n| recipe | rows | the bits of the compiled model |\n|---|---|---|\n"
    for one in records:
        same = "yes" if one["equal"] else f"{one['apart']:.1e} apart"
        text += f"| {one['name']} | {one['rows']} | {same} |\n"
    return text if records else ""
