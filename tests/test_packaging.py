"""Packages: the bits of the module that ``compile`` gives, also where qpass is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import qpass
from qpass import pipeline
from qpass.errors import InputError, UnsupportedError
from qpass.graph.program import Program
from qpass.lowering import Region
from qpass.lowering.cpu import kernels

OUTSIDE = """
import sys
import torch
torch.ops.load_library("model.ops.so")
run = torch._inductor.aoti_load_package("model.pt2")
cases = torch.load("cases.pt")
assert all(torch.equal(run(x)[0], y) for x, y in cases) and "qpass" not in sys.modules
print("equal", len(cases))
"""


@pytest.mark.skipif(kernels.available() is not None, reason=f"{kernels.available()}")
def test_a_package_gives_the_bits_of_the_compiled_module(tmp_path: Path) -> None:
    """Int8 and 4-bit weights of our C++ and what Inductor writes around them; other batches than the example's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.LayerNorm(128), nn.Linear(128, 32)).eval()
    recipe, example = {"linears": {"0": "w8a8-int8", "*": "w4a16-g32"}}, (torch.randn(3, 64),)
    path = qpass.package(model, recipe, tmp_path / "model.pt2", example)
    compiled = qpass.compile(model, recipe, example)
    inputs = [torch.randn(rows, 64) for rows in (1, 3, 40)]
    cases = [(x, compiled(x)) for x in inputs]
    run = qpass.load_package(path)
    assert all(torch.equal(run(x)[0], y) for x, y in cases)
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run([sys.executable, "-c", OUTSIDE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "equal 3\n", done.stderr
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["operators"] == "model.ops.so" and [one["type"] for one in about["inputs"]] == ["float32[batch, 64]"]
    (tmp_path / "model.json").write_text(json.dumps({**about, "torch": "1.0"}))
    with pytest.raises(InputError, match=r"made by torch 1\.0, this is .*make it again"):
        qpass.load_package(path)


def test_inputs_are_looked_at(tmp_path: Path) -> None:
    """AOTInductor's function looks at none of this: it took transposed numbers as they lie, and halves for floats."""
    model = nn.Sequential(nn.Linear(64, 10)).eval()
    run = qpass.load_package(qpass.package(model, "w8a8-int8", tmp_path / "model.pt2", (torch.randn(4, 64),)))
    x = torch.randn(64, 9).t()
    assert torch.equal(run(x)[0], run(x.contiguous())[0])
    for wrong in (x.half(), x.long(), torch.randn(3, 65), torch.randn(3, 8), torch.randn(2, 3, 64), x[:0], None):
        with pytest.raises(InputError, match=r"`.*` is .*, the compiled model takes float32\[batch, 64\]"):
            run(wrong)
    with pytest.raises(InputError, match="0 inputs, the package takes 1"):
        run()


def test_what_cannot_be_packaged_says_so(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Linear(64, 32)).eval(), (torch.randn(3, 64),)
    with pytest.raises(InputError, match=r"ends in \.pt2, not 'model\.so'.*use model\.pt2"):
        qpass.package(model, "w8a8-int8", tmp_path / "model.so", example)
    with pytest.raises(InputError, match="there is no folder"):
        qpass.package(model, "w8a8-int8", tmp_path / "no" / "model.pt2", example)
    with pytest.raises(InputError, match="there is no file"):
        qpass.load_package(tmp_path / "model.pt2")
    with pytest.raises(UnsupportedError, match=r"the target reference makes no packages.*target=\"cpu\""):
        qpass.package(model, "w8a8-int8", tmp_path / "model.pt2", example, target="reference")


def test_a_program_of_regions_is_refused(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    graph.output((graph.call_function(Region("integer_softmax", torch.fx.Graph()), ()),))
    packager = pipeline.load_target("cpu").packager
    assert packager is not None
    with pytest.raises(UnsupportedError, match="compiled op by op, and a package holds one graph"):
        packager.save(Program(graph, {}, "LOWERED"), tmp_path / "model.pt2")
