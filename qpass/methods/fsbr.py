"""Fully-smooth block reconstruction (I-LLM, Hu et al. 2024): four kinds of smoothing, learned jointly.

    norm → linear       w' = w / s,  W' = W s
    linear → linear     V' = V / s,  W' = W s            v → o, up → down
    linear with linear  q' = q / s,  k' = k s
    gated activation    x σ(x) y = x' σ(x' / s) y',  x' = s x,  y' = y / s

before   %h = gated(%gate, %up, silu); %down = linear(%h, W)
after    %h = gated(%gate', %up', silu, smooth)          smooth = 1 / s, the only thing that is left at run time
Exact, up to one rounding of each parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpass.methods.scaling import Scaling
from qpass.methods.smoothing import KINDS


@dataclass(frozen=True)
class FSBR(Scaling):
    """Options as in ``Scaling``."""

    kinds: tuple[str, ...] = KINDS

    name: ClassVar[str] = "fsbr"
    smooth = True
