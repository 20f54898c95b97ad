"""Affine quantization: v = (q - z) · s, in torchao's primitives, for weights whose last group may be short.

Shapes: N output channels, K inputs, G groups. Rounding is half to even. The range of a group always holds 0, so the
zeros that pad a short last group change neither its scale nor its codes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format


def _register_primitives() -> None:
    """Import what registers ``torch.ops.torchao``, without its notes on GPU libraries that this machine lacks."""
    quiet = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("torchao.quantization.quant_primitives")
        with contextlib.suppress(ImportError):  # imported by transformers later, with the same notes
            importlib.import_module("torchao.prototype.safetensors.safetensors_support")
    finally:
        for logger, level in zip(quiet, levels):
            logger.setLevel(level)


_register_primitives()

CHOOSE = torch.ops.torchao.choose_qparams_affine.default
QUANTIZE = torch.ops.torchao.quantize_affine.default
DEQUANTIZE = torch.ops.torchao.dequantize_affine.default
EPSILON = 1e-12  # scale of a row of zeros
AT_ONCE = 1 << 21  # weights widened to float32 at a time: a large head and its temporaries would be a GiB


def mapping(fmt: Format) -> str:
    """torchao's word for the format's symmetry."""
    return "SYMMETRIC" if fmt.symmetric else "ASYMMETRIC"


def block(fmt: Format, width: int) -> list[int]:
    """torchao's block size of a [N, K] weight: how many rows and columns share a scale."""
    return [1, fmt.group or width]


def padding(fmt: Format, width: int) -> int:
    """Columns that complete the last group."""
    return -width % fmt.group if fmt.group else 0


def choose(w_NK: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Scale and zero point of round-to-nearest: [N, G] each, of ``fmt.scale_dtype`` and int32."""
    scales, zeros = zip(*(_choose(rows, fmt) for rows in w_NK.split(_rows_at_once(w_NK))))
    return torch.cat(scales), torch.cat(zeros)


def quantize(w_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor, fmt: Format) -> Tensor:
    """Codes [N, K] of ``fmt.code_dtype``."""
    step = _rows_at_once(w_NK)
    codes = torch.empty(w_NK.shape, dtype=fmt.code_dtype, device=w_NK.device)
    for rows, scale, zero, out in zip(*(tensor.split(step) for tensor in (w_NK, scale_NG, zero_NG, codes))):
        out.copy_(_quantize(rows, scale, zero, fmt))
    return codes


def _rows_at_once(w_NK: Tensor) -> int:
    return max(1, AT_ONCE // w_NK.shape[1])


def _choose(w_NK: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    padded = _pad(w_NK.float(), fmt)
    if padded.shape[1] == 1:  # the primitive reduces over no dimension then, which torch takes for all of them
        padded = F.pad(padded, (0, 1))
    least, most = fmt.range
    scale, zero = CHOOSE(padded, mapping(fmt), block(fmt, padded.shape[1]), fmt.code_dtype, least, most, EPSILON,
                         fmt.scale_dtype, torch.int32)
    shape = (w_NK.shape[0], fmt.groups(w_NK.shape[1]))
    return scale.view(shape), zero.view(shape)


def _quantize(w_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor, fmt: Format) -> Tensor:
    padded = _pad(w_NK.float(), fmt)
    least, most = fmt.range
    codes = QUANTIZE(padded, block(fmt, padded.shape[1]), scale_NG.float(), zero_NG, fmt.code_dtype, least, most)
    return codes[:, : w_NK.shape[1]]


def dequantize(codes_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, fmt: Format, dtype: torch.dtype) -> Tensor:
    """Values [N, K] of ``dtype``."""
    padded = _pad(codes_NK, fmt)
    least, most = fmt.range
    size = block(fmt, padded.shape[1])
    values = DEQUANTIZE(padded, size, scale_NG, zero_NG, fmt.code_dtype, least, most, dtype)
    return values[:, : codes_NK.shape[1]]


def quantize_rows(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [..., K], scale [..., 1] float32 and zero point [..., 1] int32 of activations, each row on its own."""
    size = [1] * (x.dim() - 1) + [x.shape[-1]]
    least, most = fmt.range
    wide = x.to(torch.float32)
    types = fmt.code_dtype, least, most, EPSILON, torch.float32, torch.int32
    scale, zero = CHOOSE(wide, mapping(fmt), size, *types, True)
    return QUANTIZE(wide, size, scale, zero, fmt.code_dtype, least, most), scale, zero


def dequantize_rows(codes: Tensor, scale: Tensor, zero: Tensor, fmt: Format, dtype: torch.dtype) -> Tensor:
    """Activations [..., K] of ``dtype`` from what ``quantize_rows`` gives."""
    size = [1] * (codes.dim() - 1) + [codes.shape[-1]]
    least, most = fmt.range
    return DEQUANTIZE(codes, size, scale, zero, fmt.code_dtype, least, most, dtype)


def _pad(x_NK: Tensor, fmt: Format) -> Tensor:
    extra = padding(fmt, x_NK.shape[1])
    return F.pad(x_NK, (0, extra)) if extra else x_NK
