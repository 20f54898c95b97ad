"""Quantize, and linears that carry their formats. Their meaning is quantize, dequantize and a float linear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.scales import Scales
from qpass.ops.activation import gated
from qpass.ops.dialect import define
from qpass.ops.norm import layer_norm, rms_norm


@define("quantize(Tensor x, str format) -> (Tensor, Tensor, Tensor)")
def quantize(x: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of each row of x, or of each group of a row.

    Args:
        x: [..., K], any float dtype.
        format: of an input, for example ``int8:token:asym`` or ``mxfp8``.

    Returns:
        codes [..., K] (of the format's dtype), scale [..., G] float32, zero point [..., G] int32; G = 1 for a token.
    """
    return codec.quantize_rows(x, Format.parse(format))


@define("quantize_static(Tensor x, Tensor scale, Tensor zero, str format) -> Tensor")
def quantize_static(x: Tensor, scale: Tensor, zero: Tensor, format: str) -> Tensor:
    """Codes [..., K] of x with one scale that calibration has fixed.

    Args:
        x: [..., K], any float dtype.
        scale, zero: float32 and int32, one element each.
        format: of an input, for example ``int8:tensor:asym:static``.
    """
    return codec.quantize_static(x, scale, zero, Format.parse(format))


@define("dequantize_input(Tensor codes, Tensor scale, Tensor zero, str format, ScalarType dtype) -> Tensor")
def dequantize_input(codes: Tensor, scale: Tensor, zero: Tensor, format: str, dtype: torch.dtype) -> Tensor:
    """The values [..., K] of ``dtype`` that ``quantize`` or ``quantize_static`` stored. Shapes as there."""
    return codec.dequantize_rows(codes, scale, zero, Format.parse(format), dtype)


@define("fake_quantize(Tensor x, str format) -> Tensor")
def fake_quantize(x: Tensor, format: str) -> Tensor:
    """x̂ [..., K], of the dtype of x: ``quantize``, then ``dequantize_input``, for a reader that computes in float."""
    return codec.round_rows(x, Format.parse(format))


@define(
    "dequantize_weight(Tensor codes, Tensor scale, Tensor? zero, Tensor? outer, str format, ScalarType dtype) -> Tensor"
)
def dequantize_weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, outer: Tensor | None, format: str, dtype: torch.dtype
) -> Tensor:
    """The values [N, K] of a quantized weight, for formats that torchao's primitives cannot say.

    Args:
        codes: [N, K] of the format's dtype.
        scale: [R, G]: a real number, an E8M0 byte, or a shift; R = N but for blocks and tensors.
        zero: [R, G] uint8, or None.
        outer: float32 [N, 1] or [1, 1] for formats with two levels of scale, else None.
    """
    return codec.dequantize(codes, Scales(scale, zero, outer), Format.parse(format), dtype)


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
    "linear(Tensor codes, Tensor scale, Tensor zero, Tensor w_codes, Tensor w_scale, Tensor? w_zero, Tensor? w_outer,"
    " Tensor? bias, str input_format, str weight_format, ScalarType dtype) -> Tensor"
)
def linear(
    codes: Tensor, scale: Tensor, zero: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None,
    w_outer: Tensor | None, bias: Tensor | None, input_format: str, weight_format: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y = x Wᵀ + b with both operands quantized; means the float linear of the dequantized operands.

    Args:
        codes, scale, zero: [..., K], [..., G], [..., G]: what ``quantize`` gives.
        w_codes, w_scale, w_zero, w_outer: as ``dequantize_weight`` takes them.
        bias: [N] or None.
        dtype: of the result [..., N].
    """
    x = codec.dequantize_rows(codes, scale, zero, Format.parse(input_format), dtype)
    w = codec.dequantize(w_codes, Scales(w_scale, w_zero, w_outer), Format.parse(weight_format), dtype)
    return F.linear(x, w, bias)


@define(
    "weight_only_linear(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? w_zero, Tensor? w_outer, Tensor? bias,"
    " str weight_format) -> Tensor"
)
def weight_only_linear(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None, w_outer: Tensor | None, bias: Tensor | None,
    weight_format: str,
) -> Tensor:  # fmt: skip
    """y = x Wᵀ + b with a quantized weight and a float input; means the float linear of the dequantized weight.

    Args:
        x: [..., K], any float dtype; the result has it too.
        w_codes, w_scale, w_zero, w_outer: as ``dequantize_weight`` takes them.
        bias: [N] or None.
    """
    found = Scales(w_scale, w_zero, w_outer)
    return F.linear(x, codec.dequantize(w_codes, found, Format.parse(weight_format), x.dtype), bias)
