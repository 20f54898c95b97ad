"""Optimal brain quantization by explicit elimination, one column after another, in float64: GPTQ's meaning."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.scales import Scales


def layer(seed: int, rows: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """W [rows, width] and correlated inputs X [count, width] with channels of different size, float64."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=random, dtype=torch.float64) / width**0.5
    x = torch.randn(count, width, generator=random, dtype=torch.float64) @ (mix + 0.3 * torch.eye(width).double())
    size = torch.exp(torch.randn(width, generator=random, dtype=torch.float64) * 0.5)
    return torch.randn(rows, width, generator=random, dtype=torch.float64) * 0.1, x * size


def hessian(x: Tensor) -> Tensor:
    """(2/n) Σ x xᵀ."""
    return 2 / len(x) * x.T @ x


def damped(h: Tensor, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """H + λI, and which columns are dead."""
    h, dead = h.clone(), h.diagonal() == 0
    h[dead, dead] = 1
    return h + share * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype), dead


def column(fmt: Format, found: Scales, w: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """Codes and values of column ``index`` of a weight whose other columns do not matter."""
    codes = codec.quantize(w, found, fmt)
    return codes[:, index], codec.dequantize(codes, found, fmt, torch.float32)[:, index].double()


def eliminate(
    w: Tensor, h: Tensor, fmt: Format, *, live: bool = False, order: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and values of every column: each is rounded, and its error spread by the inverse Hessian of the rest."""
    damped_h, dead = damped(h)
    w = w.masked_fill(dead, 0)
    inverse, found = torch.linalg.inv(damped_h), codec.choose(w, fmt)
    codes, values = torch.empty(w.shape, dtype=fmt.code_dtype), torch.empty_like(w)
    for index in order or range(w.shape[1]):
        if live and index % fmt.group == 0:
            last = min(index + fmt.group, w.shape[1])
            part = codec.choose(w[:, index:last], fmt)
            found.scale[:, index // fmt.group] = part.scale[:, 0]
            if found.zero is not None:
                found.zero[:, index // fmt.group] = part.zero[:, 0]
        codes[:, index], values[:, index] = column(fmt, found, w, index)
        error = (w[:, index] - values[:, index]) / inverse[index, index]
        w = w - error[:, None] * inverse[index]
        inverse = inverse - torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]
    return codes, values


def output_losses(w: Tensor, values: Tensor, x: Tensor, float_x: Tensor | None = None) -> Tensor:
    """(2/n) ‖w x̃ - q x‖² of each row, from the outputs themselves."""
    error = (x if float_x is None else float_x) @ w.T - x @ values.T
    return 2 / len(x) * error.square().sum(0)
