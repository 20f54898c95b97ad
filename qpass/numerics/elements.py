"""Elements of a format: numbers that are divided by their scale already, to codes, back, and to the nearest value."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import grids


def encode(scaled: Tensor, fmt: Format) -> Tensor:
    """Codes of ``fmt.code_dtype``, saturating, ties to even. scaled: float32, any shape."""
    if fmt.grid.is_float:
        return grids.encode(scaled, fmt.grid)
    return torch.round(scaled).clamp(*fmt.range).to(fmt.code_dtype)


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """The float32 values of codes, before zero point and scale."""
    return grids.decode(codes, fmt.grid) if fmt.grid.is_float else codes.to(torch.float32)


def nearest(scaled: Tensor, fmt: Format) -> Tensor:
    """``decode(encode(scaled))`` without the codes: what a search over scales computes again and again."""
    if fmt.grid.is_float:
        return grids.nearest(scaled, fmt.grid)
    return torch.round(scaled).clamp_(*fmt.range)
