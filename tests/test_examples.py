"""Each example runs as a user runs it, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRINTS = {
    "01_compile_llama.py": "42 of 43 linears quantized",
    "02_plain_module.py": "2 of 3 linears quantized",
    "03_torch_compile_backend.py": "2 of 2 linears quantized",
    "04_look_inside.py": "joined qpass.gated",
    "05_sites.py": "24 exact edits on 30 sites",
    "06_integer_only.py": "the same logits in one go and in two",
}

def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(PRINTS)


MINUTES = ("06_integer_only.py",)  # where there are no kernels of ours it compiles the meaning of every operator


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in MINUTES else [])
                                  for name in PRINTS])  # fmt: skip
def test_example(name: str) -> None:
    path = EXAMPLES / name
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert PRINTS[name] in done.stdout
