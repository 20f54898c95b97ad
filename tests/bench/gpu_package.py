"""Packages on a GPU: made, loaded by a fresh process, and compared with the compiled model bit for bit.

    python -m tests.bench.gpu --part package

Rows are one number for each bucket. Up to 64 of them the linears are our kernels with the tiles that the compiled model
has, and outputs must be equal; above, some dense dots are Inductor's, which are timed for the compiled model and ATen's
in a package: there the largest difference is told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import qpass

RECIPES = ("w4a16-g128", "w4a8-int8", "w8a8-int8", "w8a8-fp8")
ROWS = (1, 40, 500, 2000)


def packaged(args: argparse.Namespace, more: Callable[[], bool], target: str = "cuda") -> list[dict[str, Any]]:
    """For each recipe and number of rows: whether the package gives the bits, twice, and seconds to make it."""
    records = []
    for recipe in RECIPES:
        if not more():
            print(f"time is up before {recipe}")
            return records
        with tempfile.TemporaryDirectory() as folder:
            seconds = made(recipe, Path(folder), target)
            done = subprocess.run([sys.executable, "-m", "tests.bench.gpu_package", folder], check=False,
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"the package of {recipe} did not run: {done.returncode}")
        for one in json.loads(done.stdout.splitlines()[-1]):
            records.append({"name": recipe, "seconds": seconds, **one})
            print(records[-1])
    wrong = [one for one in records if not one["repeats"] or (one["rows"] <= 40 and not one["equal"])]
    if wrong:
        raise SystemExit(f"not the bits of the compiled model: {wrong}")
    return records


def made(recipe: str, folder: Path, target: str) -> float:
    """Write the package, and inputs and outputs of the compiled model, into ``folder``; seconds of the package."""
    torch.manual_seed(0)
    with torch.device("cuda" if target.startswith("cuda") else "cpu"):
        model = nn.Sequential(nn.Linear(2048, 4096), nn.SiLU(), nn.Linear(4096, 2048)).to(torch.bfloat16).eval()
        inputs = {str(rows): torch.randn(rows, 2048, dtype=torch.bfloat16) for rows in ROWS}
    start = time.monotonic()
    qpass.package(model, recipe, folder / "model.pt2", (inputs["40"],), target=target)
    seconds = time.monotonic() - start
    compiled = qpass.compile(model, recipe, (inputs["40"],), target=target)
    save_file({rows: x.cpu() for rows, x in inputs.items()}, folder / "inputs.safetensors")
    save_file({rows: compiled(x).cpu() for rows, x in inputs.items()}, folder / "outputs.safetensors")
    return seconds


def compared(folder: Path) -> list[dict[str, Any]]:
    """In a process that has compiled nothing: the package's outputs beside those that were kept."""
    run = qpass.load_package(folder / "model.pt2")
    device = "cuda" if json.loads((folder / "model.json").read_text())["target"].startswith("cuda") else "cpu"
    wanted, records = load_file(folder / "outputs.safetensors"), []
    for rows, x in load_file(folder / "inputs.safetensors", device=device).items():
        first, again = (run(x)[0].cpu() for _ in range(2))
        apart = (first.float() - wanted[rows].float()).abs().max() / wanted[rows].float().abs().max()
        records.append({"rows": int(rows), "equal": torch.equal(first, wanted[rows]), "apart": float(apart),
                        "repeats": torch.equal(first, again)})  # fmt: skip
    return sorted(records, key=lambda one: one["rows"])


if __name__ == "__main__":
    print(json.dumps(compared(Path(sys.argv[1]))))
