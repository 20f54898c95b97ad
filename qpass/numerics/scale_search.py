"""Scales with the least error instead of those that just hold the largest value, for every kind of scale.

    min over candidates s of each group    Σ_k h_k |v_k - w_k|^p,    v = nearest(w / s) · s

    real numbers    the group's range times 1.00, 0.99, ... 0.21, and its zero point (Frantar et al. 2023, with p = 2.4)
    e8m0, m1        the rule's own exponent, ⌈log2 S⌉, and the two below
    e4m3            E4M3 numbers from S / 8 to 2 S, or all 126 that are positive; the tensor's float32 factor stays
    m2, m2plus      M2+: see ``shift_search``

With S = amax / max, no scale of 2 S or more is worth trying: the values of 2 s up to max · s are values of s too, on
every grid that is symmetric about 0, so half the scale, which still holds the largest value, is never worse. The choice
of round to nearest is always a candidate, and wins ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec, groups, powers, scales, shift_search
from qpass.numerics.group_error import group_error, input_weights
from qpass.numerics.scales import Scales

SHRINK = tuple(round(1 - step / 100, 2) for step in range(1, 80))
"""0.99 to 0.21; 1.00 is the choice of round to nearest."""
_OCTAVE = 8  # E4M3 codes
_LARGEST_E4M3_CODE = 126


def search(
    w_NK: Tensor, fmt: Format, *, power: float = 2.0, weight_K: Tensor | None = None, every: bool = False
) -> Scales:  # fmt: skip
    """The best scales found, in the form that the format stores. Bounded memory: a few rows at a time.

    Args:
        w_NK: any float dtype.
        power: of the error.
        weight_K: [K], h; None for 1.
        every: try all 126 scales of the kind e4m3.

    Raises:
        NumericsError: real scales of round to nearest that ``fmt.scale`` cannot hold.
    """
    if fmt.scale_kind.outer == "row":
        return shift_search.choose(w_NK, fmt, base_search=True, weight_K=weight_K, power=power)
    start = codec.choose(w_NK, fmt)
    weight = input_weights(weight_K, fmt, w_NK.device)
    found = []
    for rows, scale_rows in groups.chunks(w_NK, fmt):
        cut = groups.parts(w_NK[rows].float(), fmt)
        first = Scales(start.scale[scale_rows], None if start.zero is None else start.zero[scale_rows], start.outer)
        found.append(_best(cut, first, fmt, weight, power, every))
    zeros = [part.zero for part in found if part.zero is not None]
    return Scales(torch.cat([part.scale for part in found]), torch.cat(zeros) if zeros else None, start.outer)


def _best(cut: Tensor, first: Scales, fmt: Format, weight: Tensor | None, power: float, every: bool) -> Scales:
    """The best of ``first`` and the candidates, group by group."""

    def error(tried: Scales) -> Tensor:
        effective = scales.effective(tried, fmt)
        return group_error(cut, effective, fmt, zero_RG=tried.zero, weight=weight, power=power)

    best, least = first, error(first)
    for tried in _candidates(cut, first, fmt, every):
        found = error(tried)
        better = found < least  # False for a scale that became 0 or infinite: its error is NaN
        least = torch.where(better, found, least)
        zero = None if best.zero is None or tried.zero is None else torch.where(better, tried.zero, best.zero)
        best = Scales(_where(better, tried.scale, best.scale), zero, best.outer)
    return best


def _where(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """torch.where, also for FP8."""
    if one.dtype is not torch.float8_e4m3fn:
        return torch.where(mask, one, other)
    return torch.where(mask, one.view(torch.uint8), other.view(torch.uint8)).view(one.dtype)


def _candidates(cut: Tensor, first: Scales, fmt: Format, every: bool) -> Iterator[Scales]:
    if fmt.scale_kind.is_real:
        return _shrunk(cut, fmt)
    amax = cut.abs().amax((1, 3))
    if fmt.scale_kind.outer == "tensor":
        return _numbers(amax, first, fmt, every)
    return _exponents(amax, fmt)


def _shrunk(cut: Tensor, fmt: Format) -> Iterator[Scales]:
    """Real scales. A group of zeros keeps its own: no candidate is better."""
    if fmt.symmetric:
        scale = scales.real(cut.abs().amax((1, 3)), fmt)
        yield from (Scales((scale * share).to(fmt.scale_dtype)) for share in SHRINK)
        return
    low, high = cut.amin((1, 3)).clamp(max=0), cut.amax((1, 3)).clamp(min=0)
    for share in SHRINK:
        scale = ((high - low) * share / fmt.range[1]).to(fmt.scale_dtype)
        zero = torch.round(-low * share / scale.float()).nan_to_num(0).clamp(*fmt.range)
        yield Scales(scale, zero.to(torch.uint8))


def _exponents(amax: Tensor, fmt: Format) -> Iterator[Scales]:
    up = powers.ceil_log2(scales.usable(scales.real(amax, fmt), amax))
    for less in range(3):
        byte = powers.to_e8m0(up - less)
        yield Scales(torch.where(amax > 0, byte, 0).to(torch.uint8))


def _numbers(amax: Tensor, first: Scales, fmt: Format, every: bool) -> Iterator[Scales]:
    """E4M3 scales by their codes, which are in the order of the numbers."""
    assert first.outer is not None
    ratio = (amax / fmt.max / first.outer).clamp(max=448).to(torch.float8_e4m3fn)
    near = ratio.view(torch.uint8).to(torch.int32)
    if every:
        tried = (torch.full_like(near, code) for code in range(1, _LARGEST_E4M3_CODE + 1))
    else:
        tried = (near + less for less in range(-3 * _OCTAVE, _OCTAVE + 1))
    for code in tried:
        byte = code.clamp(1, _LARGEST_E4M3_CODE).to(torch.uint8)
        yield Scales(byte.view(torch.float8_e4m3fn), outer=first.outer)
