"""What a linear computes in: a format for its weight and for its input, and the field's words for common pairs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from qpass.errors import RecipeError
from qpass.formats.format import NAMED, Format
from qpass.formats.words import suggest


@dataclass(frozen=True)
class Scheme:
    """A format for a linear's weight, and for its input (None: the input stays as it is)."""

    weight: Format
    input: Format | None = None

    def __post_init__(self) -> None:
        if self.weight.granularity == "token":
            raise RecipeError("a weight has no tokens", where=str(self.weight), fix="use channel or a group")
        if self.weight.static:
            raise RecipeError("a weight is always static", where=str(self.weight), fix="leave static out")
        if not self.weight.symmetric and self.weight.granularity in ("tensor", "block"):
            raise RecipeError(f"zero points of a {self.weight.granularity}", where=str(self.weight),
                              fix="use sym, or channel or a group")  # fmt: skip
        if self.input is not None:
            check_input(self.input, str(self.input))

    def __str__(self) -> str:
        return f"{self.weight} x {self.input}" if self.input else str(self.weight)

    @staticmethod
    def parse(text: str) -> Scheme:
        """A name of ``SCHEMES``, one of ``FAMILIES`` with its number, or ``weight format x input format``."""
        if text in SCHEMES:
            return SCHEMES[text]
        for pattern, make in FAMILIES.values():
            if found := re.fullmatch(pattern, text):
                return make(*found.groups())
        if ":" not in text and " x " not in text:
            raise RecipeError(f"unknown scheme {text!r}", fix=suggest(text, SCHEMES))
        weight, _, activation = text.partition(" x ")
        return Scheme(Format.parse(weight.strip()), Format.parse(activation.strip()) if activation else None)


def check_input(fmt: Format, where: str) -> None:
    """Raise RecipeError for a format that no activation can have."""
    if fmt.granularity in ("channel", "block"):
        raise RecipeError("inputs are quantized per token, group or tensor", where=where,
                          fix="use int8:token:asym")  # fmt: skip
    if fmt.rank:
        raise RecipeError("a low-rank branch of an input", where=where, fix="write it with the weight")
    if fmt.scale in ("f16", "bf16"):
        raise RecipeError(f"inputs with scales of {fmt.scale}", where=where,
                          fix="add :f32: they are computed when they are seen and cost no memory")  # fmt: skip
    if fmt.scale_kind.outer == "row":
        raise RecipeError(f"inputs with the scale kind {fmt.scale}", where=where,
                          fix="use m1, e8m0 or e4m3: a row's largest group is known for weights only")  # fmt: skip


_W8, _A8 = Format("int8", "channel"), Format("int8", "token", symmetric=False)
_FP8_TOKEN = Format("e4m3", "token")


def _fp4(element: str, group: str | None, scale: str | None, activation: str = "") -> Scheme:
    """ZeroQuant-FP's four-bit weights: groups of 256 unless said otherwise, float16 scales unless constrained."""
    weight = Format(element, "group", int(group or 256), scale=scale or "f16")
    return Scheme(weight, Format.parse(activation) if activation else _FP8_TOKEN)


def _integer(weight: str, activation: str) -> Scheme:
    """A scale per output channel; zero points where weights have few bits."""
    inputs = Format(f"int{activation}", "token", symmetric=False)
    return Scheme(Format(f"int{weight}", "channel", symmetric=weight == "8"), inputs)


def _grouped(weight: str, activation: str, group: str) -> Scheme:
    inputs = None if activation == "16" else Format(f"int{activation}", "token", symmetric=False)
    return Scheme(Format(f"int{weight}", "group", int(group), symmetric=False), inputs)


_SUFFIX = r"(?:-g(\d+))?(?:-(m1|m2plus|m2))?"
FAMILIES: dict[str, tuple[str, Callable[..., Scheme]]] = {
    "wNaM": (r"w([2-8])a([2-8])", _integer),
    "wNa16-gG": (r"w([2-8])a(16|[2-8])-g(\d+)", _grouped),
    "w4a8-fp[-gG][-m1|-m2|-m2plus]": ("w4a8-fp" + _SUFFIX, lambda g, s: _fp4("e2m1", g, s)),
    "w4a8-int-fp[-gG][-m1|-m2|-m2plus]": ("w4a8-int-fp" + _SUFFIX, lambda g, s: _fp4("int4", g, s)),
}
"""Names with numbers in them: how they are printed -> (pattern, what makes the scheme)."""

SCHEMES: dict[str, Scheme] = {
    "w8a8-int8": Scheme(_W8, _A8),
    "w8a8-int8-sym": Scheme(_W8, Format("int8", "token")),
    "w8a16": Scheme(_W8),
    **{f"w4a16-g{group}": _grouped("4", "16", str(group)) for group in (32, 64, 128)},
    "w4a8-int8": _grouped("4", "8", "128"),
    "w8a8-fp8": Scheme(Format("e4m3", "channel"), _FP8_TOKEN),
    "w8a8-int-fp": Scheme(_W8, _FP8_TOKEN),
    "w8a8-fp8-block": Scheme(NAMED["fp8-block"], NAMED["fp8-group"]),
    "w4a8-fp": _fp4("e2m1", None, None),
    "w4a8-fp-m1": _fp4("e2m1", None, "m1"),
    "w4a8-fp-m2": _fp4("e2m1", None, "m2"),
    "w4a8-fp-m2plus": _fp4("e2m1", None, "m2plus"),
    "w4a8-fp-e3m0": _fp4("e3m0", None, None),
    "w4a8-int-fp": _fp4("int4", None, None),
    "w4a8-int": _fp4("int4", None, None, "int8:token:asym"),
    "mxfp4": Scheme(NAMED["mxfp4"], NAMED["mxfp4"]),
    "mxfp4a16": Scheme(NAMED["mxfp4"]),
    "mxfp4a8": Scheme(NAMED["mxfp4"], NAMED["mxfp8"]),
    "mxfp8": Scheme(NAMED["mxfp8"], NAMED["mxfp8"]),
    "nvfp4": Scheme(NAMED["nvfp4"], NAMED["nvfp4"]),
    "nvfp4a16": Scheme(NAMED["nvfp4"]),
    "w8a8-int8-static": Scheme(_W8, Format("int8", "tensor", symmetric=False, static=True)),
}
"""The field's words for common schemes."""
