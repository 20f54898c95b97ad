"""Target ``cuda``: planned for the GPU that is there, or for one that is named, ``cuda:sm_80``; sm_90 if neither.

``cuda:tuned``, or ``cuda:sm_90,tuned``: tiles of our kernels are chosen by trying them at the first run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.lowering import Target
from qpass.lowering.cuda.branch import join_branches
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kernels import kernels
from qpass.lowering.cuda.quantize import QUANTIZE
from qpass.lowering.inductor.buckets import Bucketed
from qpass.lowering.reference import DEQUANTIZE

TUNED = "tuned"


def configured(option: str = "") -> Target:
    """The target for one capability; without ``option`` the device's.

    Raises:
        InputError: an option that is not a compute capability, or ``tuned``.
    """
    words = option.split(",") if option else []
    tuned = TUNED in words
    stated = [word for word in words if word != TUNED]
    capability = Capability.parse(",".join(stated)) if stated else Capability.here()
    build = functools.partial(_build, capability=capability, tuned=tuned)
    said = [str(capability)] * capability.stated + [TUNED] * tuned
    name = "cuda" + (":" + ",".join(said) if said else "")
    return Target(name, (*kernels(capability), DEQUANTIZE), build, "cuda", {"quantize": QUANTIZE},
                  rewrite=join_branches, check=functools.partial(_check, capability))  # fmt: skip


def _check(capability: Capability) -> None:
    if not torch.cuda.is_available():
        raise UnsupportedError(
            f"no GPU is here to compile for {capability}",
            fix='qpass.plan and qpass.trace work without one; use target="cpu" or "reference" to compile',
        )
    here = Capability(*torch.cuda.get_device_capability())
    if here.fp8 < capability.fp8 or here.refusal:
        raise UnsupportedError(f"packed for {capability}, and the GPU is {here}", fix=f'use target="cuda:{here}"')


def _build(program: Program, *, capability: Capability, tuned: bool = False) -> torch.nn.Module:
    _check(capability)
    on_cpu = [name for name, param in program.params.items() if isinstance(param, Tensor) and not param.is_cuda]
    if on_cpu:
        raise UnsupportedError(f"{len(on_cpu)} parameters are not on the GPU, the first is {on_cpu[0]}",
                               fix='move the model first: model.to("cuda")')  # fmt: skip
    return Bucketed(program, tuned=tuned)
