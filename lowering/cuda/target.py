"""Target ``cuda``: planned for the GPU that is there, or for one that is named, ``cuda:sm_80``; sm_90 if neither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpass.errors import InputError, UnsupportedError
from qpass.graph.program import Program
from qpass.lowering import Packager, Packed, Target
from qpass.lowering.cuda.branch import join_branches
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.experts import FLOAT, experts
from qpass.lowering.cuda.integer import JOINS, PROVIDERS
from qpass.lowering.cuda.kernels import kernels, missing
from qpass.lowering.cuda.kv import attention as kv_attention
from qpass.lowering.cuda.quantize import QUANTIZE
from qpass.lowering.cuda.residual import join_residuals
from qpass.lowering.inductor.buckets import Bucketed
from qpass.lowering.inductor.modes import MODES
from qpass.lowering.reference import DEQUANTIZE, DEQUANTIZE_EXPERTS


def configured(option: str = "", mode: str | None = None) -> Target:
    """The target for one capability; without ``option`` the device's. ``mode`` is one of ``torch.compile``'s.

    Raises:
        InputError: an option that is not a compute capability, or an unknown mode.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"unknown mode {mode!r}", fix=f"use one of {', '.join(MODES)}")
    capability = Capability.parse(option) if option else Capability.here()
    build = functools.partial(_build, capability=capability, mode=mode)
    name = f"cuda:{capability}" if capability.stated else "cuda"
    return Target(name, (*kernels(capability), DEQUANTIZE), build, "cuda",
                  {"quantize": QUANTIZE, "grouped_linear": FLOAT, "kv_attention": kv_attention(capability),
                   **PROVIDERS},
                  joins=(*JOINS, join_branches, join_residuals),
                  check=functools.partial(_check, capability),
                  grouped=(*experts(capability), DEQUANTIZE_EXPERTS),
                  packager=Packager(functools.partial(_save, capability), _load,
                                    check=functools.partial(_check_package, capability)))  # fmt: skip


def _check(capability: Capability) -> None:
    if not torch.cuda.is_available():
        raise UnsupportedError(
            f"no GPU is here to compile for {capability}",
            fix='qpass.plan and qpass.trace work without one; use target="cpu" or "reference" to compile',
        )
    here = Capability.here()
    if here.amd != capability.amd or here.fp8 < capability.fp8 or here.refusal:
        raise UnsupportedError(f"packed for {capability}, and the GPU is {here}", fix=f'use target="cuda:{here}"')


def _check_package(capability: Capability) -> None:
    """No GPU is asked for: kernels are compiled for one that is described."""
    from qpass.lowering.inductor import package_cuda

    if capability.amd:
        raise UnsupportedError(f"packages are made for NVIDIA's GPUs, not for {capability}", fix="use qpass.compile")
    reason, fix = capability.refusal or missing(), "use qpass.compile"
    if reason is None:
        reason, fix = package_cuda.why_not() or (None, "")
    if reason is not None:
        raise UnsupportedError(f"no package for {capability} can be made here: {reason}", fix=fix)


def _save(capability: Capability, program: Program, path: Path) -> Packed:
    from qpass.lowering.inductor import package_cuda

    _one_place(program, moved=False)
    facts = package_cuda.package(program, path, (capability.major, capability.minor))
    return Packed(facts={"capability": str(capability), **facts})


def _load(path: Path, facts: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """Binaries run on the capability that they were compiled for."""
    from qpass.lowering.inductor import package_cuda

    made = facts["capability"]
    if not torch.cuda.is_available():
        raise UnsupportedError(f"the package is for {made}, and no GPU is here", fix="load it where one is")
    if str(Capability.here()) != made:
        raise UnsupportedError(f"the package is for {made}, and the GPU is {Capability.here()}",
                               fix=f'make it again with target="cuda:{Capability.here()}"')  # fmt: skip
    return package_cuda.load(path, facts)


def _one_place(program: Program, *, moved: bool) -> None:
    """All parameters on the GPU; where they need not be ``moved``, all elsewhere will do."""
    tensors = {name: param for name, param in program.params.items() if isinstance(param, Tensor)}
    on_cpu = [name for name, param in tensors.items() if not param.is_cuda]
    if on_cpu and (moved or len(on_cpu) < len(tensors)):
        raise UnsupportedError(f"{len(on_cpu)} parameters are not on the GPU, the first is {on_cpu[0]}",
                               fix='move the model first: model.to("cuda")')  # fmt: skip


def _build(program: Program, *, capability: Capability, mode: str | None) -> torch.nn.Module:
    _check(capability)
    _one_place(program, moved=True)
    return Bucketed(program, mode)
