"""Quantize and dequantize by format: weights [N, K] with their scales, and inputs [..., K] row by row.

Shapes: N output channels, K inputs, G groups of K, R rows of scales (N; fewer for blocks, 1 for a tensor). What torchao
has a primitive for goes through it: integers with real scales through its affine primitives (``affine``), eight-bit
floats with real scales through its float8 ones, so the graphs are those that other tools read. The rest is written
here, because torchao has nothing that fits: four-bit floats, scales that are powers of two or have two levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import affine, scales, shift_search
from qpass.numerics.elements import decode, encode
from qpass.numerics.groups import expand, group_amax, grouped, spread
from qpass.numerics.scales import Scales

CHOOSE_FLOAT8 = torch.ops.torchao.choose_scale_float8.default
QUANTIZE_FLOAT8 = torch.ops.torchao.quantize_affine_float8_non_decomposed.default
DEQUANTIZE_FLOAT8 = torch.ops.torchao.dequantize_affine_float8_non_decomposed.default

AFFINE, FLOAT8, OWN = "affine", "float8", "own"


def spelling(fmt: Format) -> str:
    """Whose primitives express a format in a graph: torchao's ``affine`` or ``float8`` ones, or our ``own``."""
    if fmt.static or fmt.granularity == "tensor" or not fmt.scale_kind.is_real or fmt.full:
        return OWN
    if fmt.grid.is_float:
        return FLOAT8 if fmt.grid.dtype is not None else OWN
    return AFFINE if fmt.granularity != "block" else OWN


def choose(w_NK: Tensor, fmt: Format) -> Scales:
    """Scales of round to nearest, by the kind of ``fmt.scale``. w_NK: any float dtype.

    Raises:
        NumericsError: real scales that ``fmt.scale`` cannot hold.
    """
    if not fmt.grid.is_float and fmt.scale_kind.is_real and fmt.granularity in ("channel", "group") and not fmt.full:
        return _affine_scales(w_NK, fmt)
    if fmt.scale == "m2plus":
        return shift_search.choose(w_NK, fmt, base_search=True)
    amax = group_amax(w_NK, fmt)
    found = scales.from_amax(amax, fmt)
    if fmt.scale_kind.is_real:
        scales.check_stored(found.scale, amax, fmt)
    return found


def quantize(w_NK: Tensor, found: Scales, fmt: Format) -> Tensor:
    """Codes [N, K] of ``fmt.code_dtype``: the grid values nearest to w / scale, saturating."""
    if spelling(fmt) == AFFINE:
        zero = torch.zeros_like(found.scale, dtype=torch.int32) if found.zero is None else found.zero.to(torch.int32)
        return affine.quantize(w_NK, found.scale, zero, fmt)
    step = max(1, affine.AT_ONCE // w_NK.shape[1]) if not fmt.rows and fmt.granularity != "tensor" else len(w_NK)
    codes = torch.empty(w_NK.shape, dtype=fmt.code_dtype, device=w_NK.device)
    whole = scales.effective(found, fmt)
    for first in range(0, len(w_NK), step):
        rows = slice(first, first + step)
        scale = expand(whole if len(whole) == 1 else whole[_scale_rows(rows, fmt)], w_NK[rows].shape, fmt)
        codes[rows] = encode(w_NK[rows].float() / scale, fmt)
    return codes


def dequantize(codes_NK: Tensor, found: Scales, fmt: Format, dtype: torch.dtype) -> Tensor:
    """Values [N, K] of ``dtype``: (code value - zero) · scale in float32, rounded once."""
    if spelling(fmt) == AFFINE:
        return affine.dequantize(codes_NK, found.scale, found.zero, fmt, dtype)
    scale = expand(scales.effective(found, fmt), codes_NK.shape, fmt)
    return (decode(codes_NK, fmt) * scale).to(dtype)


def fake_quantize(w_NK: Tensor, fmt: Format, found: Scales | None = None) -> Tensor:
    """The float32 values that a weight has after quantization, with ``found`` or with ``choose``'s scales."""
    found = choose(w_NK, fmt) if found is None else found
    return dequantize(quantize(w_NK, found, fmt), found, fmt, torch.float32)


def quantize_rows(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [..., K], scale and zero point [..., G] of inputs, each row on its own; a tensor's [..., 1] are all equal.

    The scale is float32, whatever its kind: the number that codes are multiplied with. Zero points are int32, 0 for
    formats that have none. Rows with NaN or Inf become NaN; rows of zeros stay zero.
    """
    if spelling(fmt) == AFFINE and fmt.granularity == "token":
        return affine.quantize_rows(x, fmt)
    wide = x.to(torch.float32)
    if spelling(fmt) == FLOAT8 and fmt.granularity == "token":
        scale = CHOOSE_FLOAT8(wide, row_block(x), fmt.code_dtype, torch.float32, affine.EPSILON)
        codes = QUANTIZE_FLOAT8(wide, scale, fmt.code_dtype)
        return codes, scale, torch.zeros_like(scale, dtype=torch.int32)
    low, high = _row_range(wide, fmt)
    scale, zero = row_scales(low, high, fmt)
    return quantize_static(x, scale, zero, fmt), scale, zero


def quantize_static(x: Tensor, scale: Tensor, zero: Tensor, fmt: Format) -> Tensor:
    """Codes [..., K] of inputs with given float32 scales and int32 zero points, [..., G] or broadcast to it."""
    scaled = x.to(torch.float32) / spread(scale, x.shape[-1], fmt)
    if fmt.symmetric:
        return encode(scaled, fmt)
    return encode(torch.round(scaled) + spread(zero, x.shape[-1], fmt), fmt)


def dequantize_rows(codes: Tensor, scale: Tensor, zero: Tensor, fmt: Format, dtype: torch.dtype) -> Tensor:
    """Inputs [..., K] of ``dtype`` from what ``quantize_rows`` gives."""
    if spelling(fmt) == AFFINE and fmt.granularity == "token":
        return affine.dequantize_rows(codes, scale, zero, fmt, dtype)
    if spelling(fmt) == FLOAT8 and fmt.granularity == "token":
        return DEQUANTIZE_FLOAT8(codes, scale, dtype)
    values = decode(codes, fmt)
    if not fmt.symmetric:
        values = values - spread(zero, codes.shape[-1], fmt)
    return (values * spread(scale, codes.shape[-1], fmt)).to(dtype)


def round_rows(x: Tensor, fmt: Format) -> Tensor:
    """The values [..., K] that inputs have after quantization, of their dtype."""
    return dequantize_rows(*quantize_rows(x, fmt), fmt, x.dtype)


def row_scales(low: Tensor, high: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Float32 scale and int32 zero point from the least and greatest values of rows or groups, any shape [..., G]."""
    if fmt.symmetric:
        found = scales.from_amax(torch.maximum(-low, high), fmt, rowwise=True)
        scale = scales.effective(found, fmt)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / fmt.range[1]).clamp(min=affine.EPSILON).to(fmt.scale_dtype).to(torch.float32)
    return scale, torch.round(-low / scale).clamp(*fmt.range).to(torch.int32)


def row_block(x: Tensor) -> list[int]:
    """torchao's block size of inputs that have a scale a row."""
    return [1] * (x.dim() - 1) + [x.shape[-1]]


def _scale_rows(rows: slice, fmt: Format) -> slice:
    return rows if not fmt.rows else slice(rows.start // fmt.rows, None)


def _affine_scales(w_NK: Tensor, fmt: Format) -> Scales:
    scale, zero = affine.choose(w_NK, fmt)
    if bool((scale.float() <= affine.EPSILON).any()) or bool(torch.isinf(scale).any()):
        amax = group_amax(w_NK, fmt)
        scales.check_stored(torch.where(amax == 0, 1, scale), amax, fmt)
        scale = torch.where(amax == 0, 1, scale)
    return Scales(scale, None if fmt.symmetric else zero.to(torch.uint8))


def _row_range(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """[..., G]: the least and greatest value of each group of each row; of a tensor those of all rows."""
    cut = grouped(x, fmt)
    low, high = cut.amin(-1), cut.amax(-1)
    if fmt.granularity == "tensor":
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return low, high
