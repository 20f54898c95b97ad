"""One format of a tensor, and its text: ``element:granularity:zero[:scale][:static][:rN[-f16]]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from qpass.errors import RecipeError
from qpass.formats.grid import GRIDS, Grid
from qpass.formats.scale import SCALES, Scale
from qpass.formats.words import suggest

GRANULARITIES = ("tensor", "channel", "token", "group", "block")
_ZEROS = ("sym", "asym", "full")


@dataclass(frozen=True)
class Format:
    """One quantization format.

    Attributes:
        element: name of a grid, see ``GRIDS``.
        granularity: what shares a scale: ``tensor`` (all of it), ``channel`` (an output channel of a weight), ``token``
            (a row of an activation), ``group`` (``group`` consecutive inputs of a row), ``block`` (``rows`` output
            channels times ``group`` inputs). The last group or block may be short.
        group: inputs per scale of ``group`` and ``block``, else 0.
        symmetric: no zero point; the grid is symmetric about 0.
        scale: name of a scale kind, see ``SCALES``. Empty becomes bf16 where scales are many (groups), f32 where few.
        rows: output channels per scale of ``block``, else 0.
        full: of a symmetric integer grid: S = amax / 2^(b-1) and codes from -2^(b-1), DeepSpeed's rule, which clips
            the largest positive value by up to one step. Otherwise S = amax / (2^(b-1) - 1), and nothing is clipped.
        static: the scale of an activation is fixed from calibration data; otherwise it is computed when it is seen.
        rank: of a low-rank branch U V beside the weight (LoRC), 0 for none.
        factor: ``int8`` (a scale per row of each factor) or ``f16`` (the model's own dtype), what U and V are kept in.
    """

    element: str
    granularity: str
    group: int = 0
    symmetric: bool = True
    scale: str = ""
    rows: int = 0
    full: bool = False
    static: bool = False
    rank: int = 0
    factor: str = "int8"

    def __post_init__(self) -> None:
        if self.element not in GRIDS:
            raise RecipeError(f"unknown element {self.element!r}", fix=suggest(self.element, GRIDS))
        if self.granularity not in GRANULARITIES:
            raise RecipeError(f"unknown granularity {self.granularity!r}",
                              fix=suggest(self.granularity, GRANULARITIES))  # fmt: skip
        if not self.scale:
            object.__setattr__(self, "scale", self._usual_scale)
        if self.scale not in SCALES:
            raise RecipeError(f"unknown kind of scale {self.scale!r}", fix=suggest(self.scale, SCALES))
        self._check_sizes()
        self._check_parts()

    def _check_sizes(self) -> None:
        if self.granularity in ("group", "block") and self.group < 2:
            raise RecipeError(f"a group of {self.group} values", fix="use a group of at least 2, for example g128")
        if self.granularity == "block" and self.rows < 2:
            raise RecipeError(f"a block of {self.rows} rows", fix="use a block of at least 2, for example b128x128")
        if self.rank < 0:
            raise RecipeError(f"a branch of rank {self.rank}", fix="use a rank of 1 or more, as in r8")

    def _check_parts(self) -> None:
        if self.grid.is_float and (not self.symmetric or self.full):
            raise RecipeError(f"{self.element} with a zero point", fix="write sym: floats have none")
        if self.scale_kind.outer and self.granularity != "group":
            raise RecipeError(f"the scale kind {self.scale} without groups",
                              fix=f"write gN, as in g256:sym:{self.scale}")  # fmt: skip
        if not self.symmetric and not self.scale_kind.is_real:
            raise RecipeError(f"a zero point with the scale kind {self.scale}", fix="use sym, or a scale of f32 or f16")
        if self.static and self.granularity != "tensor":
            raise RecipeError(f"a static scale per {self.granularity}", fix="use tensor, as in int8:tensor:asym:static")
        if self.factor not in ("int8", "f16"):
            raise RecipeError(f"factors of {self.factor!r}", fix=suggest(self.factor, ("int8", "f16")))

    @property
    def _usual_scale(self) -> str:
        return "bf16" if self.granularity == "group" else "f32"

    @property
    def grid(self) -> Grid:
        """The element grid."""
        return GRIDS[self.element]

    @property
    def scale_kind(self) -> Scale:
        """The kind of scale."""
        return SCALES[self.scale]

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.grid.bits

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest code of an integer grid."""
        if not self.symmetric:
            return 0, 2**self.bits - 1
        return (-(2 ** (self.bits - 1)) if self.full else 1 - 2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    @property
    def max(self) -> float:
        """What a symmetric grid maps the largest magnitude to: S = amax / max."""
        return self.grid.max if self.grid.is_float else 2.0 ** (self.bits - 1) - (0 if self.full else 1)

    @property
    def code_dtype(self) -> torch.dtype:
        """Storage of unpacked codes."""
        if self.grid.is_float:
            return self.grid.dtype or torch.uint8
        return torch.int8 if self.symmetric else torch.uint8

    @property
    def scale_dtype(self) -> torch.dtype:
        """Storage of scales."""
        return self.scale_kind.dtype

    @property
    def plain(self) -> Format:
        """Without the low-rank branch."""
        return replace(self, rank=0, factor="int8") if self.rank else self

    def groups(self, width: int) -> int:
        """Scales per row of ``width`` values."""
        return -(-width // self.group) if self.group else 1

    def scale_rows(self, count: int) -> int:
        """Rows of scales of ``count`` output channels."""
        return 1 if self.granularity == "tensor" else -(-count // self.rows) if self.rows else count

    def weight_bytes(self, rows: int, width: int) -> int:
        """Bytes of a [rows, width] weight: codes, scales, zero points and branch, packed without padding."""
        scales = self.scale_rows(rows) * self.groups(width)
        zeros = 0 if self.symmetric else scales
        outer = {"": 0, "row": rows, "tensor": 1}[self.scale_kind.outer] * 4
        return (rows * width * self.bits + 7) // 8 + (scales * self.scale_kind.bits + 7) // 8 + zeros + outer + (
            self.branch_bytes(rows, width)
        )  # fmt: skip

    def branch_bytes(self, rows: int, width: int) -> int:
        """Bytes of the low-rank factors: ``rank · (rows + width)`` values, and a float32 a row of an int8 factor."""
        values = self.rank * (rows + width)
        if self.factor == "f16":
            return 2 * values
        return values + 4 * (rows + self.rank) if self.rank else 0

    def bits_per_weight(self, rows: int, width: int) -> float:
        """``weight_bytes`` in bits, for each of the ``rows · width`` values."""
        return self.weight_bytes(rows, width) * 8 / (rows * width)

    def __str__(self) -> str:
        many = {"group": f"g{self.group}", "block": f"b{self.rows}x{self.group}"}
        where = many.get(self.granularity, self.granularity)
        words = [self.element, where, "full" if self.full else "sym" if self.symmetric else "asym"]
        words += [self.scale] if self.scale != self._usual_scale else []
        words += ["static"] if self.static else []
        words += [f"r{self.rank}{'-f16' if self.factor == 'f16' else ''}"] if self.rank else []
        return ":".join(words)

    @staticmethod
    def parse(text: str) -> Format:
        """A name of ``NAMED``, or ``int8:channel:sym``, ``int4:g128:asym:f16``, ``e2m1:g256:sym:m2:r8``.

        Raises:
            RecipeError: with the nearest legal word.
        """
        if text in NAMED:
            return NAMED[text]
        parts = text.split(":")
        if len(parts) < 3:
            if len(parts) == 1 and text not in GRIDS:
                raise RecipeError(f"{text!r} is not a format", fix=suggest(text, NAMED))
            raise RecipeError(f"{text!r} is not a format", fix="write element:granularity:sym, as in int4:g128:asym")
        element, where, zero, *rest = parts
        if zero not in _ZEROS:
            raise RecipeError(f"{zero!r} in {text!r}", fix=suggest(zero, _ZEROS))
        granularity, rows, group = _granularity(where)
        scale, static, rank, factor = _rest(text, rest)
        return Format(element, granularity, group, zero != "asym", scale, rows, zero == "full", static, rank, factor)


def _granularity(word: str) -> tuple[str, int, int]:
    """Name, rows and columns that share a scale."""
    if group := re.fullmatch(r"g(\d+)", word):
        return "group", 0, int(group[1])
    if block := re.fullmatch(r"b(\d+)x(\d+)", word):
        return "block", int(block[1]), int(block[2])
    if word not in ("tensor", "channel", "token"):
        legal = ("tensor", "channel", "token", "g128", "b128x128")
        raise RecipeError(f"unknown granularity {word!r}", fix=suggest(word, legal))
    return word, 0, 0


def _rest(text: str, words: list[str]) -> tuple[str, bool, int, str]:
    """Scale kind, static, rank and the factors' format."""
    scale, static, rank, factor = "", False, 0, "int8"
    for word in words:
        if branch := re.fullmatch(r"r(\d+)(?:-(f16|int8))?", word):
            rank, factor = int(branch[1]), branch[2] or "int8"
        elif word == "static":
            static = True
        elif word in SCALES and not scale:
            scale = word
        else:
            raise RecipeError(f"{word!r} in {text!r}", fix=suggest(word, (*SCALES, "static", "r8")))
    return scale, static, rank, factor


NAMED: dict[str, Format] = {
    "mxfp4": Format("e2m1", "group", 32, scale="e8m0"),
    "mxfp8": Format("e4m3", "group", 32, scale="e8m0"),
    "nvfp4": Format("e2m1", "group", 16, scale="e4m3"),
    "fp8-block": Format("e4m3", "block", 128, rows=128),
    "fp8-group": Format("e4m3", "group", 128, scale="f32"),
}
"""Points that have a name of their own. ``fp8-block`` and ``fp8-group`` are 128×128 weights and 1×128 inputs."""
