"""Quantize, and linears that carry their formats. Their meaning is quantize, dequantize and a float linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import affine
from qpass.ops.activation import gated
from qpass.ops.dialect import define
from qpass.ops.norm import layer_norm, rms_norm


@define("quantize(Tensor x, str format) -> (Tensor, Tensor, Tensor)")
def quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of each row of x.

    Args:
        x: [..., K], any float dtype.
        format: a format per token, for example ``int8:token:asym``.

    Returns:
        codes [..., K] (uint8 or int8), scale [..., 1] float32, zero point [..., 1] int32.
    """
    return affine.quantize_rows(x, Format.parse(format))


@define(
    "rms_norm_quantize(Tensor x, Tensor? weight, float eps, float offset, bool late_cast, str format)"
    " -> (Tensor, Tensor, Tensor)"
)
def rms_norm_quantize(
    x: Tensor, weight: Tensor | None, eps: float, offset: float, late_cast: bool, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``quantize(rms_norm(x))`` in one pass over x. Shapes as in those two."""
    return quantize(rms_norm(x, weight, eps, offset, late_cast), format)


@define(
    "layer_norm_quantize(Tensor x, Tensor? weight, Tensor? bias, float eps, str format) -> (Tensor, Tensor, Tensor)"
)
def layer_norm_quantize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``quantize(layer_norm(x))`` in one pass over x. Shapes as in those two."""
    return quantize(layer_norm(x, weight, bias, eps), format)


@define(
    "gated_quantize(Tensor gate, Tensor up, str kind, Tensor? smooth, str format) -> (Tensor, Tensor, Tensor)"
)
def gated_quantize(
    gate: Tensor, up: Tensor, kind: str, smooth: Tensor | None, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``quantize(gated(gate, up))`` in one pass. Shapes as in those two."""
    return quantize(gated(gate, up, kind, smooth), format)


@define("activation_quantize(Tensor x, str kind, Tensor? smooth, str format) -> (Tensor, Tensor, Tensor)")
def activation_quantize(x: Tensor, kind: str, smooth: Tensor | None, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """``quantize(activation(x))`` in one pass. Shapes as in those two."""
    return quantize(torch.ops.qpass.activation(x, kind, smooth), format)


@define(
    "linear(Tensor codes, Tensor scale, Tensor zero, Tensor w_codes, Tensor w_scale, Tensor? w_zero, Tensor? bias,"
    " str input_format, str weight_format, ScalarType dtype) -> Tensor"
)
def linear(
    codes: Tensor, scale: Tensor, zero: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None,
    bias: Tensor | None, input_format: str, weight_format: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y = x Wᵀ + b with both operands quantized; means the float linear of the dequantized operands.

    Args:
        codes, scale, zero: [..., K], [..., 1], [..., 1]: what ``quantize`` gives.
        w_codes, w_scale, w_zero: [N, K], [N, G], [N, G] or None for a symmetric weight format.
        bias: [N] or None.
        dtype: of the result [..., N].
    """
    x = affine.dequantize_rows(codes, scale, zero, Format.parse(input_format), dtype)
    w = affine.dequantize(w_codes, w_scale, w_zero, Format.parse(weight_format), dtype)
    return F.linear(x, w, bias)


@define(
    "weight_only_linear(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? w_zero, Tensor? bias, str weight_format)"
    " -> Tensor"
)
def weight_only_linear(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None, bias: Tensor | None, weight_format: str
) -> Tensor:
    """y = x Wᵀ + b with a quantized weight and a float input; means the float linear of the dequantized weight.

    Args:
        x: [..., K], any float dtype; the result has it too.
        w_codes, w_scale, w_zero: [N, K], [N, G], [N, G] or None for a symmetric weight format.
        bias: [N] or None.
    """
    return F.linear(x, affine.dequantize(w_codes, w_scale, w_zero, Format.parse(weight_format), x.dtype), bias)
