"""What GPTQ needs of a linear's inputs: their second moment, damped and factored, and the loss of a rounding.

Shapes: N output channels, K inputs, n rows of calibration. X [K, n] is what the linear reads in the quantized model,
X̃ what it reads in the float one.

    H = (2/n) X Xᵀ        D = (2/n) (X̃ - X) Xᵀ        S = (2/n) (X̃ - X)(X̃ - X)ᵀ
    (2/n) ‖W X̃ - Q X‖² = tr(E H Eᵀ) + 2 tr(W D Eᵀ) + tr(W S Wᵀ),    E = W - Q
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ESCALATIONS = 3
"""How often damping is multiplied by 10 where H stays singular."""


class Inputs(NamedTuple):
    """Second moments of a linear's inputs, [K, K] each, float32 or float64.

    Attributes:
        hessian: H.
        cross, drift: D and S, for a target that is the float model's; None where X̃ = X.
    """

    hessian: Tensor
    cross: Tensor | None = None
    drift: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same in another dtype."""
        cross, drift = (part if part is None else part.to(dtype) for part in self[1:])
        return Inputs(self.hessian.to(dtype), cross, drift)


class Factor(NamedTuple):
    """``upper`` [K, K] with (H + damping · I)⁻¹ = Uᵀ U; ``times``: how often damping was multiplied by 10."""

    upper: Tensor
    damping: float
    times: int


def factor(hessian_KK: Tensor, damping: float) -> Factor | None:
    """Factor H + λI, λ = ``damping`` · mean(diag H), λ multiplied by 10 up to three times; None if all fail.

    H = R Rᵀ with R upper triangular is the Cholesky factor of H with rows and columns in reverse, and then U = R⁻¹: the
    same U as that of a Cholesky factorization of H⁻¹, without H⁻¹, whose rounding can spoil it.
    """
    if not bool(torch.isfinite(hessian_KK).all()):
        return None
    mean = float(hessian_KK.diagonal().mean())
    for times in range(ESCALATIONS + 1):
        added = damping * 10**times * mean
        damped = hessian_KK.clone()
        damped.diagonal().add_(added)
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if int(info):
            continue
        identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
        upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        if bool(torch.isfinite(upper).all()):
            return Factor(upper, added, times)
    return None


def float_target(w_NK: Tensor, inputs: Inputs, upper_KK: Tensor, order: Tensor) -> Tensor:
    """W D (H + λI)⁻¹ [N, K], what to add to W so that Q X comes near W X̃. ``upper_KK`` is of H in ``order``.

    ‖W X̃ - Q X‖² + λ‖W - Q‖² is a square in Q, with its least value where Q (H + λI) = W (X̃ Xᵀ + λI), which is
    Q* = W + W D (H + λI)⁻¹, and it is tr((Q* - Q)(H + λI)(Q* - Q)ᵀ) more at any other Q. So what is left is GPTQ's own
    problem with Q* in the place of W.
    """
    assert inputs.cross is not None
    moved = (w_NK @ inputs.cross)[:, order]
    added = torch.empty_like(moved)
    added[:, order] = moved @ upper_KK.T @ upper_KK
    return added


def row_losses(w_NK: Tensor, q_NK: Tensor, inputs: Inputs) -> Tensor:
    """(2/n) ‖w X̃ - q X‖² of each row, [N]: what a rounding costs at the linear's output. No damping is in it."""
    error = w_NK - q_NK
    found = (error @ inputs.hessian * error).sum(1)
    if inputs.cross is not None and inputs.drift is not None:
        found = found + 2 * (w_NK @ inputs.cross * error).sum(1) + (w_NK @ inputs.drift * w_NK).sum(1)
    return found
