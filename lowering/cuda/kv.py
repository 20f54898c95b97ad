"""Attention over a key-value cache of codes on a GPU: which cases our kernel takes, and its call."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.lowering import Provider
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kernels import missing
from qpass.lowering.cuda.kv_tiles import WIDEST_HEAD

ELEMENTS = (*(f"int{bits}" for bits in range(2, 9)), "e4m3", "e5m2", "e2m1", "e3m0")


@functools.cache
def load() -> None:
    """Register the operator, which needs Triton."""
    importlib.import_module("qpass.lowering.cuda.kv_ops")


def _refuses_format(format: str, width: int) -> str | None:
    fmt = Format.parse(format)
    if fmt.element not in ELEMENTS:
        return f"it has no {fmt.element}"
    if width > WIDEST_HEAD:
        return f"it takes heads of up to {WIDEST_HEAD} channels, not {width}"
    if fmt.groups(width) > 1 and (fmt.group & (fmt.group - 1) or (fmt.bits <= 4 and fmt.group < 4)):
        return f"it takes groups of a power of two, not {fmt.group}"
    return None


def _refuses(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, k_format: str, v_format: str, k_width: int, v_width: int,
    causal: bool = False, scale: float | None = None, softcap: float = 0.0, eager: bool = False,
    *, capability: Capability,
) -> str | None:  # fmt: skip
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes queries of 16 or 32 bits, not {q.dtype}"
    if mask is not None and mask.dim() > 4:
        return f"it takes masks of up to four dimensions, not {mask.dim()}"
    reason = _refuses_format(k_format, k_width) or _refuses_format(v_format, v_width)
    return reason or capability.refusal or missing()


def _call(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, k_format: str, v_format: str, k_width: int, v_width: int,
    causal: bool = False, scale: float | None = None, softcap: float = 0.0, eager: bool = False,
) -> Tensor:  # fmt: skip
    load()
    factor = k_width**-0.5 if scale is None else scale
    result: Tensor = torch.ops.qpass_cuda.kv_attention(
        q, k, v, mask, k_format, v_format, k_width, v_width, causal, factor, softcap, eager
    )
    return result


def attention(capability: Capability) -> Provider:
    """For one GPU."""
    about = "codes become floats in registers, each byte read once; few rows share the keys among programs"
    return Provider("cuda.kv_attention", about, functools.partial(_refuses, capability=capability), _call)
