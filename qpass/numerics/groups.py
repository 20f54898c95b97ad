"""What shares a scale: a weight or an input cut into groups, and scales spread over what they belong to.

Shapes: N output channels, K inputs, G groups of K, R rows of scales (N; fewer for blocks, 1 for a tensor).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass.formats import Format

_CPU_AT_ONCE = 1 << 17  # float32 values that stay in a core's cache while candidates are tried on them
_AT_ONCE = 1 << 24


def group_amax(w_NK: Tensor, fmt: Format) -> Tensor:
    """[R, G] float32: the largest magnitude of what shares a scale."""
    amax = grouped(w_NK.abs(), fmt).amax(-1).float()  # abs and max are exact in any dtype
    if fmt.granularity == "tensor":
        return amax.amax(0, keepdim=True)
    if fmt.rows:
        amax = F.pad(amax, (0, 0, 0, -len(amax) % fmt.rows)).view(-1, fmt.rows, amax.shape[1]).amax(1)
    return amax


def expand(scale_RG: Tensor, shape: torch.Size, fmt: Format) -> Tensor:
    """Scales [R, G] spread over the weight they belong to: [N, K], or a shape that broadcasts to it."""
    rows, width = shape
    if fmt.rows:
        scale_RG = scale_RG.repeat_interleave(fmt.rows, 0)[:rows]
    return scale_RG.repeat_interleave(fmt.group, 1)[:, :width] if fmt.group else scale_RG


def spread(part: Tensor, width: int, fmt: Format) -> Tensor:
    """Scales or zero points [..., G] of inputs spread over the values they belong to, or a shape that broadcasts."""
    return part.repeat_interleave(fmt.group, -1)[..., :width] if fmt.group else part


def grouped(x: Tensor, fmt: Format) -> Tensor:
    """[..., G, group]: the last dimension cut into groups, the last one completed with zeros."""
    if not fmt.group:
        return x.unsqueeze(-2)
    return F.pad(x, (0, -x.shape[-1] % fmt.group)).unflatten(-1, (-1, fmt.group))


def parts(w_NK: Tensor, fmt: Format) -> Tensor:
    """[R, rows, G, group]: a weight cut into what shares a scale, completed with zeros. A view if none are."""
    cut = grouped(w_NK, fmt)
    if fmt.granularity == "tensor":
        return cut.unsqueeze(0)
    if fmt.rows:
        return F.pad(cut, (0, 0, 0, 0, 0, -len(cut) % fmt.rows)).unflatten(0, (-1, fmt.rows))
    return cut.unsqueeze(1)


def chunks(w_NK: Tensor, fmt: Format) -> Iterator[tuple[slice, slice]]:
    """Rows of a weight, and the rows of scales that are theirs alone, few enough to try many scales on.

    A scale for the whole tensor has all of it in one chunk.
    """
    if fmt.granularity == "tensor":
        yield slice(0, len(w_NK)), slice(0, 1)
        return
    block = fmt.rows or 1
    most = (_CPU_AT_ONCE if w_NK.device.type == "cpu" else _AT_ONCE) // (block * max(1, w_NK.shape[1]))
    for first in range(0, fmt.scale_rows(len(w_NK)), max(1, most)):
        last = min(first + max(1, most), fmt.scale_rows(len(w_NK)))
        yield slice(first * block, last * block), slice(first, last)
