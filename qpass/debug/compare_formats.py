"""Many recipes on one model: what each costs in accuracy, and what it saves. One capture serves all of them.

A causal language model is measured by its perplexity, any other model by how far its outputs are from the float
model's: 1 - cosine similarity, over all numbers of an output; of several outputs that which is furthest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qpass import pipeline
from qpass.debug.evaluate import ids_perplexity
from qpass.debug.weight_error import weight_errors
from qpass.errors import InputError, NumericsError, QPassError, VerifyError
from qpass.formats import Scheme
from qpass.graph.program import Program
from qpass.passes.calibrate import check_data
from qpass.recipe import Recipe

WINDOW = 256
PERPLEXITY, COSINE = "perplexity", "cosine similarity"
FLOAT = "float"
_BATCH = 4

PLAIN = ("w8a8-int8", "w8a8-int-fp", "w8a8-fp8", "w4a8-int", "w4a8-int-fp", "w4a8-fp", "w4a8-fp-m1", "w4a8-fp-m2",
         "w4a8-fp-m2plus", "w4a8-fp-e3m0", "mxfp4", "nvfp4")  # fmt: skip
"""ZeroQuant-FP's schemes and those of today, rounded to nearest."""
BRANCHED = tuple(f"{grid}:g256:sym:f16:r8 x e4m3:token:sym" for grid in ("int4", "e2m1"))
"""LoRC's plain form, which needs no data."""
SOLVED = ("gptq+w4a8-int-fp", "gptq+w4a8-fp", "gptq+w4a8-fp-m1", "gptq+w4a8-fp-m2", "lorc+w4a8-int-fp", "lorc+w4a8-fp",
          "gptq+lorc+w4a8-fp", "gptq+lorc+w4a8-fp-m2")  # fmt: skip
"""What methods that look at data make of them."""


@dataclass(frozen=True)
class Row:
    """What one recipe does to the model; of the float model in the row named ``float``.

    Attributes:
        name: the recipe, as the user wrote it.
        weight, input: formats of the line for all linears; empty where there are several or none.
        methods: names of its methods, in order.
        value: perplexity or cosine similarity.
        change: worse than float by this much: perplexity less float's, or 1 - cosine similarity.
        bits: per weight of the linears that have codes.
        weight_bytes: of all weights of the model.
        relative_error, sqnr_db: of those linears' weights, see ``WeightErrors``.
        seconds: to choose codes and build; not what the model runs at.
        linears: how many weights have codes.
        reason: why the recipe cannot run on this model; everything above is None then.
    """

    name: str
    weight: str = ""
    input: str = ""
    methods: tuple[str, ...] = ()
    value: float | None = None
    change: float | None = None
    bits: float | None = None
    weight_bytes: int | None = None
    relative_error: float | None = None
    sqnr_db: float | None = None
    seconds: float | None = None
    linears: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """All rows of one model, the float one first.

    Attributes:
        title: the model, as the user named it.
        metric: ``perplexity`` or ``cosine similarity``.
        tokens: measured on.
        window: tokens of one piece of the text.
        skipped: recipes that are another one under this comparison -> that other one.
    """

    title: str
    metric: str
    tokens: int
    window: int
    rows: tuple[Row, ...]
    skipped: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data; infinities are None, as JSON has none."""
        rows = [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows]
        return {**asdict(self), "rows": rows}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def default_recipes(*, data: bool) -> tuple[str, ...]:
    """What is compared when nothing is asked for; with ``data`` methods that look at it too."""
    return (*PLAIN, *BRANCHED, *(SOLVED if data else ()))


def compare_formats(
    model: nn.Module, recipes: Sequence[str], ids: Tensor, title: str, *, calibration: Iterable[Any] | None = None,
    weights_only: bool = False, window: int = WINDOW, captured: Program | None = None, target: str = "reference",
    begin: Callable[[str], None] = lambda name: None,
) -> Comparison:  # fmt: skip
    """Measure the float model and each recipe.

    Args:
        model: a causal language model or an encoder of transformers, in eval mode.
        recipes: as ``Recipe.parse`` takes them.
        ids: int64 [N], the tokens to measure on.
        calibration: batches, for methods and formats that look at data.
        weights_only: leave inputs in float, whatever a recipe says.
        window: tokens of a piece; shorter where the model takes no more.
        captured: CAPTURED of the model, if there is one.
        begin: called with the name of each row as its turn comes.

    Raises:
        RecipeError, InputError: a recipe that is no recipe, or needs data that is not there; fewer than two tokens.
        NumericsError: NaN in the float model.
        QPassError: of the first recipe, where none can run on the model.
    """
    parsed = [_Wanted(str(name), _weights_only(Recipe.parse(name)) if weights_only else Recipe.parse(name))
              for name in recipes]  # fmt: skip
    for one in parsed:
        check_data(one.recipe, calibration)
    wanted, skipped = _distinct(parsed)
    begin(FLOAT)
    captured = pipeline.capture(model) if captured is None else captured
    limit = captured.call.ranges.get("seq", (1, None))[1]
    measure = _Perplexity(ids, min(window, limit or window)) if captured.call.kind == "causal_lm" else (
        _Cosine(ids, min(window, limit or window), model))  # fmt: skip
    base = measure(model)
    batches = None if calibration is None else list(calibration)
    rows, errors, size = [], [], 0
    for one in wanted:
        begin(one.name)
        try:
            row, size = _row(one, model, captured, batches, target, measure, base)
        except VerifyError:
            raise
        except QPassError as error:
            errors.append(error)
            row = replace(one.row, reason=str(error))
        rows.append(row)
    if errors and len(errors) == len(rows):
        raise errors[0]
    bits = 8.0 * next((tensor.element_size() for tensor in model.parameters() if tensor.dim() > 1), 4)
    first = Row(FLOAT, value=base, change=0.0, bits=bits, weight_bytes=size)
    return Comparison(title, measure.name, measure.tokens, measure.window, (first, *rows), skipped)


@dataclass(frozen=True)
class _Wanted:
    name: str
    recipe: Recipe

    @property
    def row(self) -> Row:
        """With what is known beforehand."""
        schemes = {line.scheme for line in self.recipe.lines if line.scheme}
        scheme = schemes.pop() if len(schemes) == 1 else None
        methods = tuple(method.name for method in self.recipe.methods)
        return Row(self.name, str(scheme.weight) if scheme else "", str(scheme.input or "") if scheme else "", methods)


def _weights_only(recipe: Recipe) -> Recipe:
    lines = tuple(replace(line, scheme=Scheme(line.scheme.weight) if line.scheme else None) for line in recipe.lines)
    return replace(recipe, lines=lines)


def _distinct(wanted: Sequence[_Wanted]) -> tuple[list[_Wanted], dict[str, str]]:
    """One of each, and which of the others it stands for."""
    seen: dict[Any, str] = {}
    kept, skipped = [], {}
    for one in wanted:
        key = one.recipe.lines, repr(one.recipe.methods)
        if key in seen:
            skipped[one.name] = seen[key]
        else:
            seen[key] = one.name
            kept.append(one)
    return kept, {name: other for name, other in skipped.items() if name != other}


def _row(
    one: _Wanted, model: nn.Module, captured: Program, batches: list[Any] | None, target: str, measure: Any, base: float
) -> tuple[Row, int]:
    """The row, and bytes of the float model's weights."""
    start = time.perf_counter()
    trace = pipeline.run(captured, one.recipe, pipeline.load_target(target), calibration=batches)
    built = pipeline.build(model, trace, target=target)
    seconds = time.perf_counter() - start
    errors, plan = weight_errors(trace["SOLVED"], trace["QUANTISED"]), trace.plan
    assert plan is not None
    if errors is None:
        why = next((choice.reason for _, choice in plan.choices), "it has none")
        return replace(one.row, reason=f"no linear of the model has codes: {why}"), plan.bytes_before
    value = measure(built)
    row = replace(one.row, value=value, change=measure.worse(value, base), bits=errors.bits,
                  weight_bytes=plan.bytes_after, relative_error=errors.relative, sqnr_db=errors.sqnr_db,
                  seconds=seconds, linears=errors.count)  # fmt: skip
    return row, plan.bytes_before


class _Perplexity:
    name = PERPLEXITY

    def __init__(self, ids: Tensor, window: int) -> None:
        self.ids, self.window, self.tokens = ids, window, len(ids)

    def __call__(self, model: nn.Module) -> float:
        return ids_perplexity(model, self.ids, window=self.window, batch=_BATCH)

    @staticmethod
    def worse(value: float, base: float) -> float:
        return value - base


class _Cosine:
    """Cosine similarity of a model's outputs to the float model's, which are held."""

    name = COSINE

    def __init__(self, ids: Tensor, window: int, model: nn.Module) -> None:
        count = len(ids) // window
        if not count:
            raise InputError(f"the text has {len(ids)} tokens, one piece takes {window}", where="text",
                             fix="pass a longer text, or more tokens")  # fmt: skip
        self.pieces = ids[: count * window].view(-1, window).split(_BATCH)
        self.window, self.tokens = window, count * window
        self.float = [self._outputs(model, rows) for rows in self.pieces]

    def __call__(self, model: nn.Module) -> float:
        dot, one, two = (dict.fromkeys(self.float[0], 0.0) for _ in range(3))
        for rows, want in zip(self.pieces, self.float):
            for name, value in self._outputs(model, rows).items():
                a, b = want[name].double(), value.double()
                dot[name] += float((a * b).sum())
                one[name] += float(a.square().sum())
                two[name] += float(b.square().sum())
        sizes = {name: math.sqrt(one[name] * two[name]) for name in dot}
        found = [dot[name] / sizes[name] if sizes[name] else float(one[name] == two[name]) for name in dot]
        if any(math.isnan(value) for value in found):
            raise NumericsError("the model's outputs have NaN or Inf", where=", ".join(dot),
                                fix="compare the two models layer by layer, to find the first one")  # fmt: skip
        return min([1.0, *found])

    @staticmethod
    def worse(value: float, base: float) -> float:
        return base - value

    @torch.no_grad()
    def _outputs(self, model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
        made = model(input_ids=rows)
        named = made.items() if hasattr(made, "items") else enumerate(made if isinstance(made, tuple) else (made,))
        found = {str(name): value for name, value in named
                 if isinstance(value, Tensor) and value.is_floating_point()}  # fmt: skip
        if not found:
            raise InputError("the model's outputs have no tensor of floats", fix="use another model")
        return found
