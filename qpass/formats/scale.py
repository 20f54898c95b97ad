"""Scale kinds: what a group's scale may be, and how it is stored, as data.

    f32 f16 bf16    a real number
    e8m0            2^(⌊log2 amax⌋ - emax), OCP's rule (FLOOR): the largest values of a group may be clipped
    e8m0-even       the same, with amax first rounded to the grid's mantissa (EVEN)
    e8m0-ceil       2^(⌈log2 amax⌉ - emax) (CEIL)
    m1              2^⌈log2 (amax / max)⌉: ZeroQuant-FP's M1, which is also MX's RCEIL; nothing is clipped
    m2              S_row / 2^t, S_row the largest scale of the row, t = ⌊log2 (S_row / S)⌋, at most 14: ZeroQuant-FP's
                    M2, in the form that never clips
    m2plus            the same, with the base of each row and the rounding of each group searched for the least error
    e4m3            an E4M3 number times one float32 of the whole tensor (for inputs, of the row): NVFP4's two levels

Sources: OCP Microscaling Formats v1.0; ZeroQuant-FP (Wu et al. 2023), its two scale constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scale:
    """One kind of scale.

    Attributes:
        name: as formats spell it.
        dtype: of the stored tensor. Exponents are uint8: E8M0 bytes, or the shifts t of m2.
        bits: of one stored scale, packed.
        outer: ``row`` or ``tensor`` where each of these has a float32 factor besides, else empty.
    """

    name: str
    dtype: torch.dtype
    bits: int
    outer: str = ""

    @property
    def is_real(self) -> bool:
        """Whether the stored number is the scale."""
        return self.dtype in (torch.float32, torch.float16, torch.bfloat16)

    @property
    def is_power_of_two(self) -> bool:
        """Whether scales of a row are powers of two apart, so that a four-bit code becomes FP8 by a shift."""
        return self.dtype is torch.uint8


SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("f32", torch.float32, 32),
        Scale("f16", torch.float16, 16),
        Scale("bf16", torch.bfloat16, 16),
        *(Scale(name, torch.uint8, 8) for name in ("e8m0", "e8m0-even", "e8m0-ceil", "m1")),
        *(Scale(name, torch.uint8, 4, "row") for name in ("m2", "m2plus")),
        Scale("e4m3", torch.float8_e4m3fn, 8, "tensor"),
    )
}
"""By name."""
