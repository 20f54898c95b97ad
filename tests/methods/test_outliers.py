"""Outlier channels can be put into a real model without changing it, and smoothing takes their harm away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import qpass
from qpass.assets import evaluation_text, model_path
from qpass.graph.program import Program
from qpass.recipe import Recipe
from qpass.sites import analyse
from qpass.sites.verify import relative_error
from tests.bench.smoothquant import BEGIN, END, HIGH, LOW, PAGE, RAW, compiled, folded, outliers, raised, tables


@dataclass
class Case:
    model: Any
    captured: Program
    other: Any
    edits: list[Any]
    ids: Tensor
    data: list[Tensor]


@pytest.fixture(scope="module")
def case() -> Case:
    """One layer of the shipped model: real weights, a tied head, and quick to export."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32, num_hidden_layers=1).eval()
    ids = torch.tensor(AutoTokenizer.from_pretrained(model_path())(evaluation_text()[:6000]).input_ids)
    captured = qpass.capture(model)
    program = raised(captured)
    edits = outliers(analyse(program), seed=0)
    data = list(ids[-512:].view(2, 1, 256))
    return Case(model, captured, folded(model, program, edits), edits, ids[None, :256], data)


def inputs_of_linears(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
             for name, module in model.named_modules() if isinstance(module, nn.Linear)]  # fmt: skip
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def test_outliers_leave_the_float_model_as_it_was(case: Case) -> None:
    assert relative_error(case.model(case.ids).logits, case.other(case.ids).logits) < 1e-4
    assert case.other.lm_head.weight is case.other.model.embed_tokens.weight
    same = dict(case.model.named_parameters())
    changed = {name for name, value in case.other.named_parameters() if not torch.equal(value, same[name])}
    assert changed == {axis.param for edit in case.edits for axis in edit.site.axes}


def test_outliers_are_in_the_activations(case: Case) -> None:
    before, after = (inputs_of_linears(model, case.ids) for model in (case.model, case.other))
    assert len(case.edits) == 4
    for edit in case.edits:
        larger = 1 / edit.scale[edit.scale != 1]
        assert len(larger) == round(edit.site.size * 0.02) and larger.min() >= LOW and larger.max() <= HIGH
        for axis in edit.site.columns:
            x, y = (seen[axis.param.removesuffix(".weight")].abs() for seen in (before, after))
            assert y.max() / y.median() > 2 * x.max() / x.median()


@pytest.mark.parametrize("method", ["smoothquant", "smoothquant-free"])
def test_smoothing_takes_the_harm_away(case: Case, method: str, errors: dict[str, float]) -> None:
    assert errors["outliers"] > 5 * errors["as trained"]
    assert errors["outliers"] > 5 * errors[method]  # 14 measured


@pytest.fixture(scope="module")
def errors(case: Case) -> dict[str, float]:
    """Relative error of the logits at W8A8."""
    with torch.no_grad():
        want, other = case.model(case.ids).logits, qpass.capture(case.other)

        def error(model: Any, captured: Program, recipe: str) -> float:
            return relative_error(want, compiled(model, captured, Recipe.parse(recipe), case.data)(case.ids).logits)

        found = {"as trained": error(case.model, case.captured, "w8a8-int8")}
        for method in ("outliers", "smoothquant", "smoothquant-free"):
            found[method] = error(case.other, other, "w8a8-int8" if method == "outliers" else f"{method}+w8a8-int8")
    return found


def test_the_page_has_the_tables_of_the_numbers() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert page.strip() == "\n".join(tables(json.loads(RAW.read_text()))).strip()
