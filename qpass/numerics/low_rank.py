"""Low-rank factors of a quantization error: LoRC (Yao et al. 2023, ZeroQuant-V2), plain and weighted by the inputs.

    E = W - Ŵ [N, K],    W ≈ Ŵ + U V,    U [N, r], V [r, K]
    plain       E = P Σ Qᵀ,      U V = P_r Σ_r Q_rᵀ
    weighted    H + λI = L Lᵀ,   E L = P Σ Qᵀ,   U V = P_r Σ_r Q_rᵀ L⁻¹

By Eckart and Young ‖(E - U V) L‖_F² = Σ_{i>r} σ_i² (plain: L = I), so in exact arithmetic the error never grows. With H
the second moment of the inputs, ‖E L‖_F² is the expected squared error of the linear's output, up to the damping λ.
Any U = P_r with orthonormal columns and V = P_rᵀ E keep that bound, which is why the partial decomposition below may
stop early. Rounded factors do not keep it: ``fit`` measures what is left, and says whether they help.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qpass.errors import RecipeError
from qpass.formats import Format
from qpass.numerics import codec

DOWN, UP = "low_rank.down", "low_rank.up"
"""Parts of a weight that hold the factors of its branch: V [r, K] and U [N, r]."""

INT8 = Format("int8", "channel")
"""How int8 factors are kept: a float32 scale for each row of V, which is one direction of the branch, and for each row
of U, which is one output channel. Both are scales of output channels of a linear, so kernels apply them after the sum;
a scale for each column of U would have to be inside it, and is not worth more (0.05 % of the error at most)."""

ESCALATIONS = 3
"""How often damping is multiplied by 10 where H stays singular."""

FULL_UP_TO = 1024
"""Sides up to which all singular values are computed; above, the largest ones by subspace iteration."""
_EXTRA, _ROUNDS, _GROWTH = 16, 30, 1e-4


class Metric(NamedTuple):
    """``lower`` [K, K] float64, the L of H + λI = L Lᵀ; ``times``: how often damping was multiplied by 10."""

    lower: Tensor
    times: int = 0


class Fit(NamedTuple):
    """Factors of one error, as they will be kept.

    Attributes:
        up, down: U [N, r] and V [r, K] in the weight's dtype; int8 ones before their rounding.
        kept: both as they are kept: int8 ones rounded, float32.
        before, after: ‖E L‖_F, and ‖(E - U V) L‖_F with U and V as they are kept (rounded).
    """

    up: Tensor
    down: Tensor
    kept: tuple[Tensor, Tensor]
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether the kept factors lower the error. False for NaN: factors that their dtype cannot hold."""
        return self.after < self.before


def metric(hessian_KK: Tensor, damping: float) -> Metric | None:
    """Factor H + λI, λ = ``damping`` · mean(diag H), λ multiplied by 10 up to three times; None if all fail.

    Args:
        hessian_KK: symmetric, any float dtype; its size does not matter, so (2/n) X Xᵀ and X Xᵀ give the same factors.
    """
    wide = hessian_KK.double()
    if not bool(torch.isfinite(wide).all()):
        return None
    mean = float(wide.diagonal().mean())
    for times in range(ESCALATIONS + 1):
        damped = wide.clone()
        damped.diagonal().add_(damping * 10**times * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return Metric(lower, times)
    return None


def factors(error_NK: Tensor, rank: int, lower_KK: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """U [N, r] and V [r, K] in float32. Plain, or weighted by L; computed in float64.

    Each column of U has the norm of its row of V, so both stay in the range of a 16-bit float; without L it is √σ.

    Raises:
        RecipeError: a rank above min(N, K).
    """
    check_rank(rank, error_NK.shape)
    wide = error_NK.double()
    left, values, right = largest(wide if lower_KK is None else wide @ lower_KK, rank)
    down = values[:, None] * right
    if lower_KK is not None:
        down = torch.linalg.solve_triangular(lower_KK, down, upper=False, left=False)
    size = torch.linalg.vector_norm(down, dim=1).sqrt()
    down = torch.where(size[:, None] > 0, down / size[:, None], 0.0)
    return (left * size).float(), down.float()


def fit(error_NK: Tensor, rank: int, factor: str, dtype: torch.dtype, lower_KK: Tensor | None = None) -> Fit:
    """The factors of an error, kept as ``factor`` (``int8`` or ``f16``, which is ``dtype``), and what is left of it."""
    up, down = (part.to(dtype) for part in factors(error_NK, rank, lower_KK))
    rounds = factor == "int8" and rank > 0
    kept = (codec.fake_quantize(up, INT8), codec.fake_quantize(down, INT8)) if rounds else (up, down)
    wide = error_NK.double()
    left = wide - kept[0].double() @ kept[1].double()
    return Fit(up, down, kept, norm(wide, lower_KK), norm(left, lower_KK))


def norm(matrix_NK: Tensor, lower_KK: Tensor | None = None) -> float:
    """‖M L‖_F in float64; without L, ‖M‖_F."""
    wide = matrix_NK.double()
    return float(torch.linalg.matrix_norm(wide if lower_KK is None else wide @ lower_KK))


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """P [N, r], σ [r] and Qᵀ [r, K] of the ``rank`` largest singular values of a float64 matrix.

    Exact up to rounding where a side is at most ``FULL_UP_TO``. Above, P spans what subspace iteration found, from a
    fixed start: it stops when a round lowers ‖M - P Pᵀ M‖_F² by less than 1e-4 of it, and if 30 rounds do not get
    there, everything is computed.
    """
    if min(matrix.shape) > FULL_UP_TO and 4 * (rank + _EXTRA) < min(matrix.shape):
        found = _iterated(matrix, rank)
        if found is not None:
            return found
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def _iterated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Subspace iteration with ``_EXTRA`` more directions than asked for; None where it has not settled."""
    start = torch.Generator().manual_seed(0)
    basis = torch.randn(matrix.shape[1], rank + _EXTRA, dtype=matrix.dtype, generator=start).to(matrix.device)
    total, caught = float(matrix.square().sum()), 0.0
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(matrix @ basis).Q
        left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        more = float(values[:rank].square().sum())
        if more - caught <= _GROWTH * (total - more):
            return (basis @ left)[:, :rank], values[:rank], right[:rank]
        caught, basis = more, right.T
    return None


def check_rank(rank: int, shape: torch.Size | tuple[int, ...], where: str = "") -> None:
    """Raise RecipeError where a matrix has no such rank."""
    if rank > min(shape):
        raise RecipeError(f"a branch of rank {rank} for a weight of {' x '.join(map(str, shape))}", where=where,
                          fix=f"use a rank of at most {min(shape)}, as a rule a few")  # fmt: skip
