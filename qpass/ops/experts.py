"""Linears of many experts at once: each row has one expert, and rows of an expert are neighbors.

How many rows an expert has is data, which ATen has no differentiable and portable op for; ``qpass_experts::grouped_mm``
is that op, opaque to compilers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.scales import Scales
from qpass.ops.dialect import define


@torch.library.custom_op("qpass_experts::grouped_mm", mutates_args=())
def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """x [S, K], weight [E, N, K], offsets int [E] -> [S, N]; rows from ``offsets[-1]`` on are 0."""
    out = x.new_zeros(x.shape[0], weight.shape[1])
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > start:
            torch.mm(x[start:end], weight[expert].t(), out=out[start:end])
        start = end
    return out


@grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors
    to_x, to_weight = ctx.needs_input_grad[:2]
    grad_weight = torch.zeros_like(weight) if to_weight else None
    start = 0
    for expert, end in enumerate(offsets.tolist() if to_weight else ()):
        grad_weight[expert] = grad[start:end].t() @ x[start:end]
        start = end
    return grouped_mm(grad, weight.transpose(1, 2), offsets) if to_x else None, grad_weight, None


grouped_mm.register_autograd(_backward, setup_context=_keep)


@define("grouped_linear(Tensor x, Tensor weight, Tensor offsets) -> Tensor")
def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """y_s = W_e x_s for each row s, e its expert.

    Args:
        x: [S, K], sorted by expert.
        weight: [E, N, K], of the dtype of x.
        offsets: int32 [E]: where the rows of each expert end, not decreasing. Rows from ``offsets[-1]`` on are 0.
    """
    return grouped_mm(x, weight, offsets)


@define(
    "quantized_grouped_linear(Tensor codes, Tensor scale, Tensor zero, Tensor w_codes, Tensor w_scale,"
    " Tensor? w_zero, Tensor? w_outer, Tensor offsets, str input_format, str weight_format, ScalarType dtype) -> Tensor"
)
def quantized_grouped_linear(
    codes: Tensor, scale: Tensor, zero: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None,
    w_outer: Tensor | None, offsets: Tensor, input_format: str, weight_format: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``grouped_linear`` with both operands quantized; means the float op of the dequantized operands.

    Args:
        codes, scale, zero: [S, K], [S, G], [S, G]: what ``quantize`` gives.
        w_codes, w_scale, w_zero, w_outer: as ``dequantize_weight`` takes them, the experts' rows one after another:
            codes [E · N, K].
        offsets: int32 [E], as in ``grouped_linear``.
        dtype: of the result [S, N].
    """
    x = codec.dequantize_rows(codes, scale, zero, Format.parse(input_format), dtype)
    return grouped_mm(x, _weight(w_codes, Scales(w_scale, w_zero, w_outer), offsets, weight_format, dtype), offsets)


@define(
    "weight_only_grouped_linear(Tensor x, Tensor w_codes, Tensor w_scale, Tensor? w_zero, Tensor? w_outer,"
    " Tensor offsets, str weight_format) -> Tensor"
)
def weight_only_grouped_linear(
    x: Tensor, w_codes: Tensor, w_scale: Tensor, w_zero: Tensor | None, w_outer: Tensor | None, offsets: Tensor,
    weight_format: str,
) -> Tensor:  # fmt: skip
    """``grouped_linear`` with a quantized weight and a float input; means the float op of the dequantized weight.

    Args:
        x: [S, K], any float dtype; the result has it too.
        w_codes, w_scale, w_zero, w_outer, offsets: as in ``quantized_grouped_linear``.
    """
    return grouped_mm(x, _weight(w_codes, Scales(w_scale, w_zero, w_outer), offsets, weight_format, x.dtype), offsets)


def _weight(codes: Tensor, found: Scales, offsets: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    return codec.dequantize(codes, found, Format.parse(form), dtype).unflatten(0, (offsets.shape[0], -1))
