"""Element grids: the values that one code may stand for, as data.

An integer grid is a range of integers. A float grid has ``e`` exponent bits, ``m`` mantissa bits and a bias:

    code = sign · 2^(e+m) + exponent · 2^m + mantissa
    exponent = 0:  mantissa / 2^m · 2^(1 - bias)            (subnormals; with m = 0 only 0)
    exponent > 0:  (1 + mantissa / 2^m) · 2^(exponent - bias)

The eight-bit ones are those of OCP's OFP8 (E4M3 without infinities, E5M2) and their "fnuz" variants (one NaN at the
code of -0, bias one larger), E2M1 is that of OCP's MX formats. E3M0 has bias 3, as ZeroQuant-FP's ablation leaves it
open and a real scale makes it irrelevant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """One grid.

    Attributes:
        name: as formats spell it.
        bits: of one code.
        exponent, mantissa, bias: of a float grid; ``exponent`` is 0 for an integer grid.
        dtype: torch's dtype of that grid, which unpacked codes are then stored in; None where torch has none, and
            codes are uint8 (or int8 for a symmetric integer grid).
    """

    name: str
    bits: int
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0
    dtype: torch.dtype | None = None

    @property
    def is_float(self) -> bool:
        """Whether the grid is that of a floating-point format."""
        return self.exponent > 0

    @property
    def max(self) -> float:
        """The largest finite value of a float grid."""
        if self.dtype is not None:
            largest: float = torch.finfo(self.dtype).max
            return largest
        return max(self.values)

    @property
    def values(self) -> tuple[float, ...]:
        """What the codes 0, 1, 2, ... of a float grid without a dtype (all codes finite) stand for."""
        half: list[float] = [self._magnitude(code) for code in range(2 ** (self.bits - 1))]
        return (*half, *(-value for value in half))

    def _magnitude(self, code: int) -> float:
        exponent, fraction = code >> self.mantissa, (code & ((1 << self.mantissa) - 1)) / (1 << self.mantissa)
        power = float(2.0 ** ((exponent or 1) - self.bias))
        return (fraction + 1 if exponent else fraction) * power

    @property
    def max_exponent(self) -> int:
        """⌊log2 max⌋: what the MX scale rules call emax. 2 for E2M1, 8 for E4M3, 15 for E5M2."""
        return math.frexp(self.max)[1] - 1


GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        *(Grid(f"int{bits}", bits) for bits in range(2, 9)),
        Grid("e2m1", 4, 2, 1, 1),
        Grid("e3m0", 4, 3, 0, 3),
        Grid("e4m3", 8, 4, 3, 7, torch.float8_e4m3fn),
        Grid("e5m2", 8, 5, 2, 15, torch.float8_e5m2),
        Grid("e4m3fnuz", 8, 4, 3, 8, torch.float8_e4m3fnuz),
        Grid("e5m2fnuz", 8, 5, 2, 16, torch.float8_e5m2fnuz),
    )
}
"""By name."""
