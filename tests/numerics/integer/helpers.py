"""Rows to test with: plain, with outlier channels, with a massive activation, tiny, huge, zero."""

from __future__ import annotations

import torch
from torch import Tensor


def real(x: Tensor, k: Tensor) -> Tensor:
    """The values of rows, float64."""
    return x.double() * torch.exp2(-k.double())


def rows_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose largest |x| is near 2^28."""
    top = values.double().abs().amax(-1, keepdim=True).clamp(min=2.0**-90)
    k = 28 - torch.floor(torch.log2(top))
    return torch.round(values.double() * torch.exp2(k)).to(torch.int32), k.to(torch.int32)


def hard_rows(rows: int, width: int) -> Tensor:
    """float64 [rows, width]."""
    x = torch.randn(rows, width, dtype=torch.float64)
    x[rows // 4 :, :4] *= torch.tensor([20.0, 30.0, 50.0, 100.0])
    x[rows // 2 :: 4, 1] = 1500.0
    x[-1] = 0.0
    x[-2] *= 2.0**-40
    x[-3] *= 2.0**40
    return x


def rel_rms(got: Tensor, want: Tensor) -> float:
    return float(((got - want) ** 2).mean().sqrt() / (want**2).mean().sqrt())
