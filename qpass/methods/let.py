"""Learned equivalent transformation (OmniQuant, Shao et al. 2024): learned scales and shifts that change no function.

    Y = X Wᵀ + b = ((X - δ) / s) (W diag(s))ᵀ + (b + W δ);      q' = q / s, k' = k s

before   %norm = rms_norm(%x, w); %q = linear(%norm, W)
after    the same graph with w' = w / s and W' = W s
Exact, up to one rounding of each parameter. It acts at every site that scale flow proves: behind norms, v → o through
grouped heads, up → down, q with k tied through rotary pairs, where the published code has four places by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpass.methods.scaling import Scaling


@dataclass(frozen=True)
class LET(Scaling):
    """Options as in ``Scaling``."""

    kinds: tuple[str, ...] = ("linear-norm", "serial linear-linear", "parallel linear-linear")
    shift: bool = True

    name: ClassVar[str] = "let"
