"""Many recipes on one model: every number of a row against one that is computed another way."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qpass
from qpass import pipeline
from qpass.debug.compare_formats import (
    COSINE,
    FLOAT,
    PERPLEXITY,
    Comparison,
    Row,
    compare_formats,
    default_recipes,
)
from qpass.debug.evaluate import ids_perplexity
from qpass.debug.format_answers import QUESTIONS, answers
from qpass.debug.format_page import cells, kind, markdown, save, text
from qpass.debug.weight_error import stored, weight_errors
from qpass.errors import InputError, RecipeError
from qpass.formats import Format
from qpass.loading import load_model
from qpass.methods import METHODS
from qpass.recipe import Recipe
from tests.debug import small

RECIPES = ["w8a8-int8", "w8a8-int-fp", "w4a8-fp-g16", "w4a8-fp-g16-m2", "w4a8-fp", "lorc+w4a8-fp-g16"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Tensor, Comparison]:
    model = load_model(small.causal(tmp_path_factory.mktemp("tiny"), layers=1))
    captured, ids = qpass.capture(model), torch.randint(0, 4096, (70,))
    begun: list[str] = []
    found = compare_formats(model, RECIPES, ids, "tiny", captured=captured, window=32, begin=begun.append,
                            calibration=[ids[None, :32]])  # fmt: skip
    assert begun == [FLOAT, *RECIPES]
    return model, captured, ids, found


def test_perplexity_is_that_of_compile(case: Any) -> None:
    model, _, ids, found = case
    assert found.metric == PERPLEXITY and found.tokens == 70 and found.window == 32
    assert [row.name for row in found.rows] == [FLOAT, *RECIPES]
    base, row = found.rows[0], found.rows[3]
    assert base.value == pytest.approx(ids_perplexity(model, ids, window=32)) and base.change == 0 and base.bits == 32
    compiled = qpass.compile(model, "w4a8-fp-g16", target="reference")
    assert row.value == pytest.approx(ids_perplexity(compiled, ids, window=32), rel=1e-6)
    assert row.change == row.value - base.value and row.reason == ""
    assert row.weight_bytes == compiled.qpass_plan.bytes_after and base.weight_bytes == compiled.qpass_plan.bytes_before


def test_bits_are_those_of_the_format(case: Any) -> None:
    row, fmt = case[3].rows[3], Format.parse("e2m1:g16:sym:f16")
    assert row.weight == str(fmt) and row.input == "e4m3:token:sym" and row.linears == 8
    assert row.bits == fmt.bits_per_weight(32, 32) == 5  # widths are multiples of 16: 4 bits and 16 of a scale in 16


def test_a_branch_counts(case: Any) -> None:
    plain, branch = case[3].rows[3], case[3].rows[6]
    assert branch.methods == ("lorc",) and branch.bits > plain.bits and branch.relative_error < plain.relative_error


def test_a_scheme_that_cannot_run_is_a_row(case: Any) -> None:
    row = case[3].rows[5]
    assert "a group of 256 is wider than 8 weights" in row.reason and row.value is None
    assert cells(row, PERPLEXITY)[1].startswith("cannot run: a group of 256")
    assert "cannot run: a group of 256" in text(case[3]) and "cannot run: a group of 256" in markdown(case[3])


def test_files(case: Any, tmp_path: Path) -> None:
    save(case[3], tmp_path, {"text": "made up"}, notes=["A note."])
    data = json.loads((tmp_path / "compare-formats.json").read_text())
    assert data["text"] == "made up" and [row["name"] for row in data["rows"]] == [FLOAT, *RECIPES]
    assert set(data["answers"]) == {question.text for question in QUESTIONS}
    assert (tmp_path / "compare-formats.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "compare-formats.md").read_text()
    assert page.count("\n| ") == len(RECIPES) + 2 and "A note." in page


def test_an_infinite_perplexity_is_shown(case: Any, tmp_path: Path) -> None:
    row = Row("x", "int8:channel:sym", value=math.inf, change=math.inf, bits=8.0)
    ruined = Comparison("tiny", PERPLEXITY, 70, 32, (case[3].rows[0], row), {})
    save(ruined, tmp_path, {})
    assert json.loads((tmp_path / "compare-formats.json").read_text())["rows"][1]["value"] is None
    assert cells(row, PERPLEXITY)[1] == "inf"


def test_weights_only(case: Any) -> None:
    model, captured, ids, _ = case
    found = compare_formats(model, RECIPES[:3], ids, "tiny", captured=captured, window=32, weights_only=True)
    assert [row.name for row in found.rows] == [FLOAT, "w8a8-int8", "w4a8-fp-g16"]
    assert found.skipped == {"w8a8-int-fp": "w8a8-int8"} and {row.input for row in found.rows} == {""}
    want = ids_perplexity(qpass.compile(model, "w8a16", target="reference"), ids, window=32)
    assert found.rows[1].value == pytest.approx(want, rel=1e-6)
    assert "w8a8-int-fp: left out, it is w8a8-int8 here" in text(found)


def test_bad_input(case: Any) -> None:
    model, captured, ids, _ = case
    with pytest.raises(RecipeError, match="unknown scheme 'w8a8-int9'"):
        compare_formats(model, ["w8a8-int8", "w8a8-int9"], ids, "tiny", captured=captured)
    with pytest.raises(InputError, match="the method gptq looks at data"):
        compare_formats(model, ["gptq+w8a16"], ids, "tiny", captured=captured)
    with pytest.raises(InputError, match="at least two tokens"):
        compare_formats(model, ["w8a16"], ids[:1], "tiny", captured=captured)
    with pytest.raises(RecipeError, match="a group of 256 is wider"):  # nothing can run
        compare_formats(model, ["w4a8-fp", "w4a8-int"], ids[:40], "tiny", captured=captured)


def test_an_encoder_is_measured_by_its_outputs(tmp_path: Path) -> None:
    model, ids = load_model(small.encoder(tmp_path)), torch.randint(5, 4096, (50,))
    found = compare_formats(model, ["w4a8-g16", "w8a16"], ids, "tiny")
    assert found.metric == COSINE and found.window == 24 and found.tokens == 48  # the model takes 24 tokens
    pieces, compiled = ids[:48].view(2, 24), qpass.compile(model, "w4a8-g16", target="reference")
    want, got = model(input_ids=pieces), compiled(input_ids=pieces)
    similar = [float(torch.cosine_similarity(want[name].double().flatten(), got[name].double().flatten(), 0))
               for name in ("last_hidden_state", "pooler_output")]  # fmt: skip
    assert found.rows[0].value == pytest.approx(1.0, abs=1e-12)
    assert found.rows[1].value == pytest.approx(min(similar), abs=1e-6)
    assert found.rows[1].change == pytest.approx(1 - min(similar), abs=1e-6)
    assert found.rows[1].change > found.rows[2].change >= 0
    with pytest.raises(InputError, match="the text has 10 tokens, one piece takes 24"):
        compare_formats(model, ["w8a16"], ids[:10], "tiny", captured=qpass.capture(model))


# ------------------------------------------------------------------------------------------------------ weight errors


@pytest.mark.parametrize("scheme", ["int4:g8:asym", "e2m1:g8:sym:m2:r2", "e2m1:g16:sym:e4m3", "e4m3:b4x8:sym",
                                    "int2:channel:sym:r3-f16"])  # fmt: skip
def test_stored_weights_are_those_that_the_model_multiplies_with(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(24, 12, bias=False)).eval()
    trace = pipeline.trace(model, {"linears": {"*": scheme}}, (torch.randn(3, 24),), target="reference")
    (choice,) = (choice for _, choice in trace.plan.choices)
    got = stored(trace["QUANTISED"], choice, torch.float32)
    built = pipeline.build(model, trace, target="reference")
    torch.testing.assert_close(got, built(torch.eye(24)).T, rtol=1e-5, atol=1e-6)
    weight, found = model[0].weight, weight_errors(trace["SOLVED"], trace["QUANTISED"])
    error = float((weight - got).double().norm() / weight.double().norm())
    assert found.relative == pytest.approx(error, rel=1e-6) and found.count == 1
    assert found.sqnr_db == pytest.approx(-20 * math.log10(error), rel=1e-6)
    wider = 2 * 3 * (12 + 24) if "f16" in scheme else 0  # the factors are kept in the model's dtype, float32 here
    assert found.bits == Format.parse(scheme).bits_per_weight(12, 24) + 8 * wider / (12 * 24)


def test_a_shared_weight_counts_once_and_kept_ones_not() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.kept = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.kept(self.two(torch.relu(self.one(x))))

    recipe = {"linears": {"kept": "keep", "*": "w8a16"}}
    trace = pipeline.trace(Tied().eval(), recipe, (torch.randn(3, 8),), target="reference")
    assert weight_errors(trace["SOLVED"], trace["QUANTISED"]).count == 1
    kept = pipeline.trace(Tied().eval(), {"linears": {"*": "keep"}}, (torch.randn(3, 8),), target="reference")
    assert weight_errors(kept["SOLVED"], kept["QUANTISED"]) is None


# ------------------------------------------------------------------------------------------------------------- answers


def made(*rows: tuple[str, float]) -> Comparison:
    found = []
    for name, change in rows:
        recipe = Recipe.parse(name)
        scheme = recipe.lines[0].scheme
        assert scheme is not None
        found.append(Row(name, str(scheme.weight), str(scheme.input or ""), tuple(m.name for m in recipe.methods),
                         10 + change, change, 4.0))  # fmt: skip
    return Comparison("made", PERPLEXITY, 100, 50, (Row(FLOAT, value=10.0, change=0.0), *found), {})


def test_answers_compare_what_differs_in_one_thing() -> None:
    found = dict(answers(made(("w8a8-int8", 0.3), ("w8a8-int-fp", 0.1), ("w8a8-fp8", 0.2), ("w4a8-int", 3.0),
                              ("w4a8-int-fp", 2.0), ("w4a8-fp", 1.5), ("w4a8-fp-m2", 1.75), ("mxfp4", 9.0),
                              ("gptq+w4a8-fp", 1.0), ("gptq+lorc+w4a8-fp", 1.0))))  # fmt: skip
    assert found["INT8 or FP8 activations?"] == [
        "w8a8-int8 +0.3, w8a8-int-fp +0.1: w8a8-int-fp is better by 0.2",
        "w4a8-int +3, w4a8-int-fp +2: w4a8-int-fp is better by 1",
    ]
    assert found["INT4 or FP4 weights?"] == ["w4a8-int-fp +2, w4a8-fp +1.5: w4a8-fp is better by 0.5"]
    scales = found["What do scales cost that are powers of two apart?"]
    assert scales == ["w4a8-fp +1.5, w4a8-fp-m2 +1.75: w4a8-fp is better by 0.25"]
    assert found["What does GPTQ win back?"] == ["w4a8-fp +1.5, gptq+w4a8-fp +1: gptq+w4a8-fp is better by 0.5"]
    assert found["What does LoRC win back?"] == ["gptq+w4a8-fp +1, gptq+lorc+w4a8-fp +1: equal"]
    assert found["E2M1 or E3M0?"] == ["not measured; compare w4a8-fp w4a8-fp-e3m0"]


def test_a_branch_in_the_format_is_a_branch() -> None:
    found = dict(answers(made(("w4a8-fp", 1.0), ("e2m1:g256:sym:f16:r8 x e4m3:token:sym", 0.5))))
    assert "is better by 0.5" in found["What does LoRC win back?"][0]


def test_what_questions_ask_for_answers_them() -> None:
    for question in QUESTIONS:
        rows = [(name, float(number)) for number, name in enumerate(question.ask.split())]
        assert "is better by" in dict(answers(made(*rows)))[question.text][0]


@pytest.mark.parametrize("data", [False, True])
def test_default_recipes_parse_and_need_what_they_say(data: bool) -> None:
    for name in default_recipes(data=data):
        recipe = Recipe.parse(name)
        assert data or not any(method.needs_data for method in recipe.methods)
    assert {"gptq", "lorc"} <= set(METHODS)


def test_kinds_of_bars() -> None:
    names = ["w8a8-int8", "w8a8-fp8", "mxfp4", "w4a4", "w6a6", "w8a16"]
    assert [kind(row) for row in made(*((name, 1.0) for name in names)).rows[1:]] == [
        "INT8 activations", "FP8 activations", "4-bit activations", "4-bit activations", "other activations",
        "float activations"]  # fmt: skip
