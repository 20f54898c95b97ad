"""Scales of groups by kind: what is stored, from the largest magnitude of each group.

amax is [R, G] float32: the largest |w| of each group of each row. ``real`` is S = amax / max, the scale that maps the
largest magnitude to the largest value of the grid. A group of zeros gets S = 1 and codes of 0; in a weight with E8M0
scales it gets the byte 0, as in torchao's MX formats. A group with NaN or Inf gets a scale that is NaN, or NaN or Inf
where scales are real numbers or have an outer factor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qpass.errors import NumericsError
from qpass.formats import Format
from qpass.numerics import powers

MAX_SHIFT = 14
"""The largest t of S_row / 2^t: with it, four-bit codes become E4M3 exactly (see ``shift_cast``)."""
_SMALLEST_E4M3, _LARGEST_E4M3 = 2.0**-6, 448.0


class Scales(NamedTuple):
    """What turns codes into values: v = (code value - zero) · inner · outer.

    Attributes:
        scale: [R, G] of ``fmt.scale_dtype``: the scale, or its E8M0 byte, or its shift t.
        zero: [R, G] uint8, or None for a format without zero points.
        outer: float32 [R, 1] or [1, 1], for scale kinds that have one, else None.
    """

    scale: Tensor
    zero: Tensor | None = None
    outer: Tensor | None = None


def real(amax: Tensor, fmt: Format) -> Tensor:
    """S = amax / max in float32; 1 where amax is 0. NaN and Inf stay NaN and Inf."""
    return torch.where(amax == 0, 1.0, amax / fmt.max)


def from_amax(amax: Tensor, fmt: Format, *, rowwise: bool = False) -> Scales:
    """Scales of a symmetric format by its kind. Nothing is checked, so that it can be traced; see ``check_stored``.

    Args:
        amax: [R, G] of a weight; with ``rowwise``, [..., G] of an input, each row on its own.
    """
    scale = real(amax, fmt)
    if fmt.scale_kind.is_real:
        return Scales(scale.to(fmt.scale_dtype))
    if fmt.scale_kind.outer == "row":
        return row_shifts(scale, amax)
    if fmt.scale_kind.outer == "tensor":
        return two_level(amax, fmt, rowwise=rowwise)
    byte = torch.where(torch.isfinite(amax), powers.to_e8m0(_exponent(amax, fmt)), powers.NAN)
    # Not for inputs: they are divided by their scale where a GPU may flush 2^-127 to 0.
    return Scales(byte.to(torch.uint8) if rowwise else torch.where(amax == 0, 0, byte).to(torch.uint8))


def inner(scales: Scales, fmt: Format) -> Tensor:
    """The stored scales as float32, without the outer factor. Exact."""
    if fmt.scale_kind.outer == "row":
        return powers.exp2(-scales.scale.to(torch.int32))
    return powers.from_e8m0(scales.scale) if fmt.scale_dtype is torch.uint8 else scales.scale.to(torch.float32)


def effective(scales: Scales, fmt: Format) -> Tensor:
    """[R, G] float32: what a code's value is multiplied with."""
    scale = inner(scales, fmt)
    return scale if scales.outer is None else scale * scales.outer


def _exponent(amax: Tensor, fmt: Format) -> Tensor:
    """log2 of the power of two that the rule of ``fmt.scale`` gives; 0 for a group of zeros."""
    size = torch.where((amax > 0) & torch.isfinite(amax), amax, fmt.max)
    if fmt.scale == "m1":
        found = powers.ceil_log2(size / fmt.max)
    elif fmt.scale == "e8m0-ceil":
        found = powers.ceil_log2(size) - _emax(fmt)
    elif fmt.scale == "e8m0-even":
        found = powers.even_log2(size, fmt.grid.mantissa) - _emax(fmt)
    else:
        found = powers.floor_log2(size) - _emax(fmt)
    return torch.where(amax == 0, 0, found)


def _emax(fmt: Format) -> int:
    return fmt.grid.max_exponent if fmt.grid.is_float else fmt.bits - 2


def usable(scale: Tensor, amax: Tensor) -> Tensor:
    """S, and 1 for groups of zeros and those with NaN or Inf, which have no logarithm."""
    return torch.where((amax > 0) & torch.isfinite(scale), scale, 1.0)


def row_shifts(scale: Tensor, amax: Tensor) -> Scales:
    """M2: t = ⌊log2 (S_row / S)⌋ from 0 to 14, S_row the largest S of a row, real. All-zero groups follow their row."""
    outer = row_base(scale, amax)
    return Scales(shifts_up(outer, scale, amax).clamp(0, MAX_SHIFT).to(torch.uint8), outer=outer)


def row_base(scale: Tensor, amax: Tensor) -> Tensor:
    """[R, 1]: S_row, the largest S of a row; 1 for a row of zeros. NaN and Inf stay."""
    outer = torch.where(amax == 0, 0.0, scale).amax(1, keepdim=True)
    return torch.where(outer == 0, 1.0, outer)


def shifts_up(base: Tensor, scale: Tensor, amax: Tensor) -> Tensor:
    """⌊log2 (base / S)⌋, int32, of any size: the largest t with base / 2^t ≥ S. 0 where a group is 0 or not finite."""
    ratio = base / scale
    ratio = torch.where((amax > 0) & torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    shift = powers.floor_log2(ratio)
    # The division may round up to a power of two: the scale would then be a last bit too small.
    return shift - ((base.double() * torch.exp2(-shift.double())) < scale.double()).to(torch.int32)


def beyond(amax: Tensor, fmt: Format) -> Tensor:
    """[R, G] bool: groups whose scale is less than 2^-14 of their row's, so that M2 must stop at t = 14.

    They are rounded with that larger scale: nothing is clipped, and their steps are finer than 2^-14 of the row's.
    """
    scale = real(amax, fmt)
    return shifts_up(row_base(scale, amax), scale, amax) > MAX_SHIFT


def beyond_limit(count: int, total: int) -> str:
    """The same in words, for a log."""
    return f"{count} of {total} groups below 2^-{MAX_SHIFT} of their row's largest"


def two_level(amax: Tensor, fmt: Format, *, rowwise: bool = False) -> Scales:
    """An E4M3 scale a group, and one float32 for all: s_T = amax_T / (448 · max), s = E4M3(amax / max / s_T).

    The E4M3 scale is kept from 2^-6 to 448, as torchao's NVFP4 does.
    """
    largest = amax.amax(-1, keepdim=True) if rowwise else amax.amax().reshape(1, 1)
    outer = torch.where(largest == 0, 1.0, largest / (_LARGEST_E4M3 * fmt.max))
    ratio = (amax / fmt.max / outer).clamp(_SMALLEST_E4M3, _LARGEST_E4M3)
    return Scales(ratio.to(torch.float8_e4m3fn), outer=outer)


def check_stored(stored: Tensor, amax: Tensor, fmt: Format) -> None:
    """Raise NumericsError for real scales that became 0 or infinite when they were rounded to ``fmt.scale_dtype``."""
    bad = ((stored == 0) & (amax > 0)) | (torch.isinf(stored) & torch.isfinite(amax))
    if bool(bad.any()):
        first = tuple(int(index) for index in bad.nonzero()[0])
        what = "too small" if bool((stored[bad] == 0).all()) else "too large"
        raise NumericsError(f"{int(bad.sum())} scales are {what} for {fmt.scale}, the first at {first} of [row, group]",
                            fix="use a scale of f32 or bf16, or m1")  # fmt: skip
