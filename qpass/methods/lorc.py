"""LoRC (Yao et al. 2023, ZeroQuant-V2): a low-rank branch that gives back a part of what rounding took.

    E = W - Ŵ,    y = x Ŵᵀ + (x Vᵀ) Uᵀ,    U V the best rank-r approximation of E, or of E L, H + λI = L Lᵀ

before   param layers.0.mlp.up_proj.weight, and its codes where an earlier method has chosen them
after    param layers.0.mlp.up_proj.weight.low_rank.up [N, r] and .low_rank.down [r, K]: ``quantise`` adds the branch
Not exact. Each branch that is kept lowers ‖E L‖_F, the output's error on the calibration batches up to the damping λ
(plain: ‖E‖_F), with its factors as they are stored. ``qpass.numerics.low_rank`` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from qpass.errors import NumericsError, RecipeError
from qpass.formats import Scheme, suggest
from qpass.graph.program import Change, Param, Program
from qpass.graph.values import op_name
from qpass.methods.method import Data, Solution
from qpass.numerics import codec
from qpass.numerics.low_rank import DOWN, UP, Fit, Metric, fit, metric, norm
from qpass.numerics.scales import Scales
from qpass.observe.moments import SecondMoment
from qpass.observe.run import gather
from qpass.sites.analysis import Analysis
from qpass.sites.edits import check_finite

AUTO = "auto"
AT_ONCE = 1 << 30
"""Bytes of second moments held at a time; what does not fit sees the batches in another run."""

Inputs = tuple[str, ...]
"""Names of the values that the linears of one weight read."""


@dataclass(frozen=True)
class Lorc:
    """Options of a recipe. A branch that is written in a format, as in ``int4:g128:asym:r8``, keeps its rank there.

    Args:
        rank: of every branch; 0 for none. ``auto``: max(8, min(N, K) / 128), at most min(N, K) / 16, of an [N, K]
            weight. The paper uses 8, and a 128th of the hidden size for some models; more gives little.
        factor: ``int8`` (a scale a row) or ``f16`` (the model's own dtype).
        weighted: measure errors at the linear's output, with the second moment of its inputs. False needs no data.
        damping: added to that moment's diagonal, as a share of its mean; up to 1000 times as much where it is singular.
        merge: keep the linear in float with the weight Ŵ + U V, to evaluate; nothing is saved, inputs stay float.
    """

    rank: int | str = AUTO
    factor: str = "int8"
    weighted: bool = True
    damping: float = 0.01
    merge: bool = False

    name: ClassVar[str] = "lorc"

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 0
        if not whole and self.rank != AUTO:
            raise RecipeError(f"rank is {self.rank!r}", where=self.name, fix=f"use a whole number, or {AUTO!r}")
        if self.factor not in ("int8", "f16"):
            raise RecipeError(f"factor is {self.factor!r}", where=self.name,
                              fix=suggest(str(self.factor), ("int8", "f16")))  # fmt: skip
        for option in ("weighted", "merge"):
            if not isinstance(getattr(self, option), bool):
                raise RecipeError(f"{option} is {getattr(self, option)!r}", where=self.name, fix="use true or false")
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not number or not 0 < self.damping <= 1:
            raise RecipeError(f"damping is {self.damping!r}", where=self.name, fix="use a number above 0, at most 1")

    @property
    def needs_data(self) -> bool:
        """The plain form needs none."""
        return self.weighted

    def amend(self, scheme: Scheme, shape: tuple[int, int]) -> Scheme:
        """The scheme with a branch, unless its format has one."""
        if scheme.weight.rank:
            return scheme
        rank = auto_rank(shape) if isinstance(self.rank, str) else self.rank
        return replace(scheme, weight=replace(scheme.weight, rank=rank, factor=self.factor)) if rank else scheme

    def solve(self, program: Program, analysis: Analysis, data: Data | None) -> Solution:
        """The factors of every weight whose format has a branch; without the branch where they do not help.

        Raises:
            RecipeError: ``merge`` for a weight that something else reads.
            InputError, NumericsError: batches that cannot be used, NaN or Inf in a weight or an input, scales that a
                format cannot hold.
        """
        work = _Work(program, self)
        with tqdm(total=len(work.weights), desc=self.name, unit=" weights", leave=False, disable=None) as bar:
            for inputs, moment in _moments(program, work.groups, data if self.weighted else None):
                found = None if moment is None else metric(moment, self.damping)
                for name in work.groups[inputs]:
                    work.solve(name, found)
                    bar.update()
        return work.solution()


def auto_rank(shape: tuple[int, int]) -> int:
    """max(8, m / 128), at most m / 16, m = min(N, K): 0, no branch, for a weight too small to gain from one."""
    side = min(shape)
    return min(max(8, side // 128), side // 16)


def _moments(
    program: Program, groups: dict[Inputs, list[str]], data: Data | None
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """What each group's linears read, as Σ x xᵀ up to a factor; None for all of them where there are no data."""
    if data is None:
        yield from ((inputs, None) for inputs in groups)
        return
    for some in _fitting(program, list(groups)):
        names = dict.fromkeys(name for inputs in some for name in inputs)
        seen = gather(program, data(), {name: SecondMoment() for name in names})
        yield from ((inputs, _merged([seen[name] for name in inputs])) for inputs in some)


def _fitting(program: Program, groups: list[Inputs]) -> Iterator[list[Inputs]]:
    """The groups, in order, in lists whose moments fit in ``AT_ONCE``; a list has one group at least."""
    widths = {node.meta["name"]: node.meta["val"].shape[-1] for node in program.graph.nodes
              if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim()}  # fmt: skip
    some: list[Inputs] = []
    for inputs in groups:
        names = dict.fromkeys(name for group in (*some, inputs) for name in group)
        if some and 4 * sum(int(widths[name]) ** 2 for name in names) > AT_ONCE:
            yield some
            some = []
        some.append(inputs)
    if some:
        yield some


def _merged(seen: list[SecondMoment]) -> Tensor | None:
    """The moment of all rows together: that of a weight that several linears read."""
    total = sum(moment.count for moment in seen)
    parts = [moment.matrix * (moment.count / total) for moment in seen if moment.matrix is not None]
    return sum(parts[1:], parts[0]) if parts else None


class _Work:
    """Solves one weight after another, and keeps what it found."""

    def __init__(self, program: Program, method: Lorc) -> None:
        self.program, self.method = program, method
        self.weights: dict[str, Scheme] = {}
        reads: dict[str, dict[str, None]] = {}
        for node in program.nodes():
            scheme = getattr(node.meta.get("plan"), "scheme", None)
            if scheme is not None and scheme.weight.rank:
                name = node.meta["plan"].weight
                self.weights[name] = scheme
                reads.setdefault(name, {})[node.args[0].meta["name"]] = None  # type: ignore[union-attr]
        self.groups: dict[Inputs, list[str]] = {}
        for name, values in reads.items():
            self.groups.setdefault(tuple(values), []).append(name)
        if method.merge:
            self._check_merge()
        self.params: dict[str, Param] = {}
        self.schemes: dict[str, Scheme | None] = {}
        self.notes: list[Change] = []
        self.ratios: list[tuple[float, float]] = []

    def _check_merge(self) -> None:
        """Raise RecipeError before anything runs."""
        for node in self.program.graph.nodes:
            if node.op != "get_attr" or node.target not in self.weights:
                continue
            for user in node.users:
                if getattr(user.meta.get("plan"), "scheme", None) is None:
                    raise RecipeError(f"merging would change what {op_name(user.target)} reads", where=str(node.target),
                                      fix="use merge: false, or keep this linear in float")  # fmt: skip

    def solve(self, name: str, found: Metric | None) -> None:
        """Fit one weight's error."""
        scheme, value = self.weights[name], self.program.tensor(name)
        check_finite(name, value)
        rounded = _rounded(self.program, name, value, scheme)
        lower = None if found is None else found.lower
        error = value.float() - rounded
        got = fit(error, scheme.weight.rank, scheme.weight.factor, value.dtype, lower)
        size = norm(value, lower) or 1.0
        self.ratios.append((got.before / size, (got.after if got.helps else got.before) / size))
        self._keep(name, got, rounded)
        self._note(name, got, size, found)

    def _keep(self, name: str, got: Fit, rounded: Tensor) -> None:
        scheme = self.weights[name]
        if self.method.merge:
            up, down = got.kept
            merged = rounded + up.float() @ down.float() if got.helps else rounded
            self.params[name] = merged.to(self.program.like(name).dtype)
            self.schemes[name] = None
        elif got.helps:
            self.params |= {f"{name}.{UP}": got.up, f"{name}.{DOWN}": got.down}
        else:
            self.schemes[name] = replace(scheme, weight=scheme.weight.plain)

    def _note(self, name: str, got: Fit, size: float, found: Metric | None) -> None:
        fmt = self.weights[name].weight
        kind = "output" if found else "weight"
        told = f"relative {kind} error {got.before / size:.3g} -> {got.after / size:.3g}"
        if got.helps:
            what = f"rank {fmt.rank}, {fmt.factor} factors: {told}"
        elif got.before == 0:
            what = "dropped the branch: there is no error to correct"
        else:
            what = f"dropped the branch: rank {fmt.rank} does not help with {fmt.factor} factors: {told}"
        if found is None and self.method.weighted:
            what += "; not weighted: the second moment of its inputs is zero or singular"
        elif found is not None and found.times:
            what += f"; damping {10**found.times} times the usual"
        self.notes.append(Change(self.method.name, name, what))

    def solution(self) -> Solution:
        """All that was found."""
        if not self.weights:
            note = Change(self.method.name, "-", "skipped: the plan gives no linear a branch")
            return Solution(summary="no branch", notes=(note,))
        before, after = (sum(part) / len(self.ratios) for part in zip(*self.ratios))
        kind = "output" if self.method.weighted else "weight"
        dropped = sum(note.what.startswith("dropped") for note in self.notes)
        what = f"{len(self.weights) - dropped} of {len(self.weights)} branches kept"
        reasons = {}
        if self.method.merge:
            what += ", merged into float weights, to evaluate only"
            reasons = dict.fromkeys(self.schemes, f"{self.method.name} merged its branch into it, to evaluate only")
        what += f"; mean relative {kind} error {before:.3g} -> {after:.3g}"
        return Solution(params=self.params, schemes=self.schemes, reasons=reasons, summary=what,
                        notes=tuple(self.notes))  # fmt: skip


def _rounded(program: Program, name: str, value: Tensor, scheme: Scheme) -> Tensor:
    """Ŵ [N, K] in float32: with the codes and scales that an earlier method has set, else as ``quantise`` rounds."""
    fmt, params = scheme.weight.plain, program.params
    have = {part: program.tensor(f"{name}.{part}") for part in ("scale", "zero", "outer")
            if f"{name}.{part}" in params}  # fmt: skip
    try:
        found = Scales(**have) if "scale" in have else codec.choose(value, fmt)
    except NumericsError as error:
        raise NumericsError(error.what, where=name, fix=error.fix) from error
    given = f"{name}.codes" in params
    codes = program.tensor(f"{name}.codes") if given else codec.quantize(value, found, fmt)
    return codec.dequantize(codes, found, fmt, torch.float32)
