"""What a choice of scales costs: the error of each group, for searches over scales.

    Σ_k h_k |v_k - w_k|^p,    v = (nearest(w / s + z) - z) · s

h is 1, or the mean square of input k: then for p = 2 and uncorrelated inputs the sum is the expected squared error of
the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import elements, scales
from qpass.numerics.groups import chunks, grouped, parts
from qpass.numerics.scales import Scales


def group_error(
    cut: Tensor, scale_RG: Tensor, fmt: Format, *, zero_RG: Tensor | None = None, weight: Tensor | None = None,
    power: float = 2.0,
) -> Tensor:  # fmt: skip
    """[R, G] float64: the error of each group with these scales.

    Args:
        cut: [R, rows, G, group] float32, from ``groups.parts``. The zeros it is completed with have no error.
        scale_RG: float32, what codes are multiplied with, the outer factor included.
        zero_RG: zero points of an integer format.
        weight: [1, 1, G, group], from ``input_weights``; None for 1.
        power: of the error.
    """
    scale = scale_RG[:, None, :, None]
    # As in the codec: float32 division, and for zero points rounding before the shift.
    if zero_RG is None:
        error = elements.nearest(cut / scale, fmt).mul_(scale)
    else:
        zero = zero_RG[:, None, :, None].to(torch.float32)
        error = elements.nearest(torch.round(cut / scale).add_(zero), fmt).sub_(zero).mul_(scale)
    error.sub_(cut)
    error = error.mul_(error) if power == 2 else error.abs_().pow_(power)
    if weight is not None:
        error.mul_(weight)
    return error.sum((1, 3), dtype=torch.float64)


def input_weights(weight_K: Tensor | None, fmt: Format, device: torch.device) -> Tensor | None:
    """[1, 1, G, group] float32: h of each input, completed with zeros."""
    if weight_K is None:
        return None
    return grouped(weight_K.to(device, torch.float32), fmt)[None, None]


def weight_error(
    w_NK: Tensor, found: Scales, fmt: Format, *, weight_K: Tensor | None = None, power: float = 2.0
) -> float:
    """The error of a whole weight with these scales, a few rows at a time. w_NK: any float dtype."""
    total = torch.zeros((), dtype=torch.float64, device=w_NK.device)
    weight, scale = input_weights(weight_K, fmt, w_NK.device), scales.effective(found, fmt)
    for rows, scale_rows in chunks(w_NK, fmt):
        zero = None if found.zero is None else found.zero[scale_rows]
        cut = parts(w_NK[rows].float(), fmt)
        total += group_error(cut, scale[scale_rows], fmt, zero_RG=zero, weight=weight, power=power).sum()
    return float(total)
