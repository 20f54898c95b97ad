"""Low-rank factors of a quantization error: LoRC (Yao et al. 2023, ZeroQuant-V2).

    E = W - Ŵ = P Σ Qᵀ,    U = P_r Σ_r^½  [N, r],    V = Σ_r^½ Q_rᵀ  [r, K],    W ≈ Ŵ + U V

By Eckart and Young ‖E - U V‖_F² = Σ_{i>r} σ_i², so in exact arithmetic the error never grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.errors import RecipeError


def factors(error_NK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U [N, r] and V [r, K] in float32, the square roots of the singular values in both.

    Raises:
        RecipeError: a rank above min(N, K).
    """
    check_rank(rank, error_NK.shape)
    left, values, right = torch.linalg.svd(error_NK.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()


def check_rank(rank: int, shape: torch.Size | tuple[int, ...], where: str = "") -> None:
    """Raise RecipeError where a matrix has no such rank."""
    if rank > min(shape):
        raise RecipeError(f"a branch of rank {rank} for a weight of {' x '.join(map(str, shape))}", where=where,
                          fix=f"use a rank of at most {min(shape)}, as a rule a few")  # fmt: skip
