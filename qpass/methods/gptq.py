"""GPTQ (Frantar et al. 2023): codes that keep a linear's output, not its weights, near; in any format.

    min ‖(W - Q) X‖²        X: what the linear reads at inference, behind weights that are rounded already
    min ‖W X̃ - Q X‖²        ``asymmetric`` (GPTAQ, Li et al. 2025): X̃ is what it reads in the float model

before   param layers.0.mlp.up_proj.weight
after    param layers.0.mlp.up_proj.weight, .codes, .scale (.zero, .outer): ``quantise`` takes them as they are
Not exact. The loss of every weight is at most that of round to nearest, on the calibration batches and for the inputs
that it sees: ``qpass.numerics.gptq`` has the mathematics, ``qpass.observe.walk`` the order of things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from tqdm import tqdm

from qpass.errors import NumericsError, RecipeError
from qpass.formats import Format
from qpass.graph.program import Change, Param, Program
from qpass.methods.method import Data, Solution
from qpass.numerics import codec
from qpass.numerics.gptq import Settings, Swept, is_static, sweep
from qpass.numerics.scales import Scales
from qpass.observe.walk import Layer, walk
from qpass.sites.analysis import Analysis
from qpass.sites.edits import check_finite

PARTS = ("scale", "zero", "outer")


@dataclass(frozen=True)
class Gptq:
    """Options of a recipe.

    Args:
        block: columns whose updates of the rest are one matrix product; for speed.
        damping: added to H's diagonal, as a share of its mean; 10, 100 and 1000 times as much where H stays singular.
        act_order: columns with the largest inputs first. Group scales stay those of neighboring columns.
        static_groups: choose group scales from the whole weight before anything is rounded. False: each from its
            columns as they are when their turn comes. By default real scales are chosen on the way, and powers of two
            and those with an outer factor before. Scales that an earlier method has set are used as they are.
        asymmetric: let the output come near the float model's. Twice the time and memory.
        quantize_inputs: let weights see inputs in the format that the plan gives them.
    """

    block: int = 128
    damping: float = 0.01
    act_order: bool = False
    static_groups: bool | None = None
    asymmetric: bool = False
    quantize_inputs: bool = True

    name: ClassVar[str] = "gptq"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise RecipeError(f"block is {self.block!r}", where=self.name, fix="use a whole number of 1 or more")
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not number or not 0 < self.damping <= 1:
            raise RecipeError(f"damping is {self.damping!r}", where=self.name, fix="use a number above 0, at most 1")
        for option in ("act_order", "asymmetric", "quantize_inputs"):
            if not isinstance(getattr(self, option), bool):
                raise RecipeError(f"{option} is {getattr(self, option)!r}", where=self.name, fix="use true or false")
        if self.static_groups is not None and not isinstance(self.static_groups, bool):
            raise RecipeError(f"static_groups is {self.static_groups!r}", where=self.name,
                              fix="use true or false, or leave it out")  # fmt: skip
        if self.act_order and self.static_groups is False:
            raise RecipeError("act_order with static_groups false", where=self.name, fix="leave one of them out")

    @property
    def settings(self) -> Settings:
        """For ``sweep``."""
        return Settings(self.block, float(self.damping), self.act_order, self.static_groups)

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """Codes and scales of every weight that the plan gives a format.

        Raises:
            RecipeError: ``static_groups`` is False where scales must be known before.
            InputError, NumericsError: batches that cannot be used, NaN or Inf in a weight or an input, scales that a
                format cannot hold.
        """
        assert data is not None
        work = _Work(program, self)
        if not work.names:
            return Solution(notes=(Change(self.name, "-", "skipped: the plan gives no linear a format"),))
        with tqdm(total=len(work.names), desc=self.name, unit=" weights", leave=False, disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.update(done - bar.n)

            walk(program, data(), work.solve, quantize_inputs=self.quantize_inputs, asymmetric=self.asymmetric,
                 progress=progress)  # fmt: skip
        return Solution(params=work.params, notes=tuple(work.notes))


class _Work:
    """Solves the weights that a walk comes to, and keeps what it found."""

    def __init__(self, program: Program, method: Gptq) -> None:
        self.program, self.method = program, method
        self.params: dict[str, Param] = {}
        self.notes: list[Change] = []
        choices = [node.meta["plan"] for node in program.nodes() if getattr(node.meta.get("plan"), "scheme", None)]
        self.names = list(dict.fromkeys(choice.weight for choice in choices))
        for choice in choices:
            self._check(choice.weight, choice.scheme.weight.plain)

    def _check(self, name: str, fmt: Format) -> None:
        """Raise before anything runs."""
        if self.method.static_groups is False and fmt.group and f"{name}.scale" in self.program.params:
            raise RecipeError("static_groups is false, and an earlier method has set its scales", where=name,
                              fix="leave static_groups out")  # fmt: skip
        try:
            is_static(fmt, self.method.settings)
        except RecipeError as error:
            raise RecipeError(error.what, where=f"{name}, {error.where}", fix=error.fix) from error

    def _given(self, name: str) -> Scales | None:
        """Scales that an earlier method has set."""
        if f"{name}.scale" not in self.program.params:
            return None
        found = {part: self.program.tensor(f"{name}.{part}") for part in PARTS
                 if f"{name}.{part}" in self.program.params}  # fmt: skip
        return Scales(**found)

    def solve(self, layer: Layer) -> Tensor:
        """The values that a weight has after its rounding."""
        name, given = layer.name, self._given(layer.name)
        check_finite(name, layer.value)
        if f"{name}.codes" in self.program.params and given is not None:
            self._note(name, "skipped: an earlier method has chosen its codes")
            codes = self.program.tensor(f"{name}.codes")
            return codec.dequantize(codes, given, layer.format, layer.value.dtype)
        try:
            found = sweep(layer.value, layer.format, layer.inputs, given=given, settings=self.method.settings)
        except NumericsError as error:
            raise NumericsError(error.what, where=name, fix=error.fix) from error
        parts: dict[str, Any] = {"codes": found.codes, **found.scales._asdict()}
        self.params |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        self._note(name, describe(found, layer.rows))
        return codec.dequantize(found.codes, found.scales, layer.format, layer.value.dtype)

    def _note(self, name: str, what: str) -> None:
        self.notes.append(Change(self.method.name, name, what))


def describe(found: Swept, rows: int) -> str:
    """One line on one weight."""
    if found.failed:
        return f"skipped: {found.failed}: rounded to nearest"
    ratio = found.loss / found.nearest if found.nearest else 1.0
    words = [f"loss {ratio:.3f} of round to nearest's, on {rows} rows"]
    width = found.codes.shape[1]
    words += [f"fewer rows than its {width} inputs"] if rows < width else []
    words += [f"{found.dead} of {width} inputs are always 0, and so are their weights now"] if found.dead else []
    words += [f"{found.kept} of {len(found.codes)} rows rounded to nearest, which is better"] if found.kept else []
    words += [f"damping {10**found.times} times the usual"] if found.times else []
    return "; ".join(words)

