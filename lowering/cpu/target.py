"""Target ``cpu``: low-bit kernels for the linears, Inductor's C++ for everything around them.

The kernels are our own C++ where the processor has AVX-512 VNNI; elsewhere ATen's. Preference is the order of
``KERNELS``; each refuses what it cannot do, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.lowering import Packager, Packed, Region, Target
from qpass.lowering.cpu import kernels
from qpass.lowering.cpu.aten import ATEN_INT4, ATEN_INT8, ATEN_INT8_WEIGHT
from qpass.lowering.cpu.attention import ATTENTION
from qpass.lowering.cpu.build import load_library
from qpass.lowering.cpu.experts import EXPERTS
from qpass.lowering.cpu.integer import JOINS, PROVIDERS
from qpass.lowering.cpu.linears import INT4, INT8, INT8_WEIGHT
from qpass.lowering.inductor.compile import Compiled
from qpass.lowering.inductor.package import load, package_program
from qpass.lowering.inductor.regions import Regions
from qpass.lowering.reference import DEQUANTIZE

KERNELS: tuple[Any, ...] = (INT8, INT4, INT8_WEIGHT, ATEN_INT8, ATEN_INT4, ATEN_INT8_WEIGHT, DEQUANTIZE)


def _build(program: Program) -> torch.nn.Module:
    return Regions(program) if any(isinstance(node.target, Region) for node in program.nodes()) else Compiled(program)


def _save(program: Program, path: Path) -> Packed:
    if any(isinstance(node.target, Region) for node in program.nodes()):
        raise UnsupportedError("an integer-only program is compiled op by op, and a package holds one graph",
                               fix="use qpass.compile for it, or package a recipe such as w8a8-int8")  # fmt: skip
    package_program(program, path)
    calls = any("qpass_cpu" in str(node.target) for node in program.nodes())
    return Packed(Path(load_library()) if calls else None)


def _load(path: Path, facts: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    if kernels.available() is None:
        kernels.load()
    return load(path)


target = Target("cpu", KERNELS, _build, device="cpu", providers={"attention": ATTENTION, **PROVIDERS}, regions=True,
                joins=JOINS, grouped=EXPERTS, packager=Packager(_save, _load))  # fmt: skip
