"""The second moments of a linear's inputs, streamed: the Hessian of GPTQ (Frantar et al. 2023), up to its damping.

    H = (2 / n) Σ x xᵀ,    and for a batch of m more rows    H ← H · n / (n + m) + 2 / (n + m) · Xᵀ X
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpass.errors import InputError, NumericsError
from qpass.numerics.hessian import Inputs


@dataclass
class SecondMoment:
    """H of one value. Empty until the first ``update``.

    Attributes:
        matrix: [K, K] of ``dtype``, symmetric; None before the first row.
        count: rows seen, n.
        dtype: float32, or float64 for tests.
    """

    matrix: Tensor | None = field(default=None, repr=False)
    count: int = 0
    dtype: torch.dtype = torch.float32

    def update(self, x: Tensor) -> None:
        """Take in one batch. x: [..., K], any float dtype.

        Raises:
            NumericsError: NaN or Inf.
            InputError: another K than before.
        """
        rows = finite_rows(x, self.dtype)
        self.add(rows, rows)

    def add(self, left: Tensor, right: Tensor) -> None:
        """Take in Σ l rᵀ of two values with the same rows, [m, K] each of ``dtype``; ``matrix`` is of them then."""
        if not left.shape[0]:
            return
        if self.matrix is not None and self.matrix.shape[0] != left.shape[1]:
            raise InputError(f"{left.shape[1]} channels, there were {self.matrix.shape[0]} before",
                             fix="pass batches of one kind")  # fmt: skip
        total = self.count + len(left)
        added = left.T @ right * (2 / total)
        self.matrix = added if self.matrix is None else self.matrix.mul_(self.count / total).add_(added)
        self.count = total

    def merge(self, other: SecondMoment) -> None:
        """Take in the rows of another one."""
        if other.matrix is None:
            return
        total = self.count + other.count
        share = other.matrix * (other.count / total)
        self.matrix = share if self.matrix is None else self.matrix.mul_(self.count / total).add_(share)
        self.count = total


class StreamMoments:
    """H of what a linear reads in the quantized model, and with ``asymmetric`` D and S against the float one."""

    def __init__(self, dtype: torch.dtype, *, asymmetric: bool) -> None:
        self.parts = [SecondMoment(dtype=dtype) for _ in range(3 if asymmetric else 1)]
        self.dtype = dtype

    @property
    def count(self) -> int:
        """Rows seen."""
        return self.parts[0].count

    def update(self, x: Tensor, float_x: Tensor | None) -> None:
        """Take in one batch of both, [..., K]. Errors as in ``SecondMoment.update``."""
        rows = finite_rows(x, self.dtype)
        pairs = [(rows, rows)]
        if len(self.parts) > 1 and float_x is not None:
            moved = finite_rows(float_x, self.dtype) - rows
            pairs += [(moved, rows), (moved, moved)]
        for part, pair in zip(self.parts, pairs):
            part.add(*pair)

    def merge(self, other: StreamMoments) -> None:
        """Take in the rows of another one."""
        for mine, more in zip(self.parts, other.parts):
            mine.merge(more)

    def inputs(self) -> Inputs:
        """What GPTQ takes. Raises InputError where no row was seen."""
        if self.parts[0].matrix is None:
            raise InputError("the calibration batches have no row", fix="pass batches that are not empty")
        return Inputs(self.parts[0].matrix, *(part.matrix for part in self.parts[1:]))


def finite_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [..., K] as [rows, K] of ``dtype``. Raises NumericsError for NaN or Inf, with the first channel."""
    rows = x.detach().reshape(-1, x.shape[-1]).to(dtype)
    if len(rows) and not all(bool(torch.isfinite(end)) for end in torch.aminmax(rows)):
        bad = (~torch.isfinite(rows)).any(0).nonzero()
        raise NumericsError(f"NaN or Inf in {len(bad)} channels, the first is {int(bad[0])}",
                            fix="repair the checkpoint or the batch")  # fmt: skip
    return rows
