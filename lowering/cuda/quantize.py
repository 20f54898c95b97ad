"""Quantizing rows to E4M3 in ATen, so that Inductor joins it with the norm or activation before it.

torchao's primitive, which is what the op's meaning calls, is opaque to Inductor: on a GPU it runs as kernels of its
own. The result is the same bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.lowering import Provider
from qpass.numerics import affine, codec
from qpass.numerics.elements import encode


def _refuses(x: Tensor, format: str) -> str | None:
    fmt = Format.parse(format)
    if codec.spelling(fmt) == codec.FLOAT8 and fmt.granularity == "token":
        return None
    return "cuda.quantize is for eight-bit floats per token; the op's own meaning is ATen already"


def _call(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    fmt = Format.parse(format)
    wide = x.to(torch.float32)
    scale = codec.CHOOSE_FLOAT8(wide, codec.row_block(x), fmt.code_dtype, torch.float32, affine.EPSILON)
    return encode(wide / scale, fmt), scale, torch.zeros_like(scale, dtype=torch.int32)


QUANTIZE = Provider("cuda.quantize", "eight-bit floats in ATen, joined with what makes them", _refuses, _call)
