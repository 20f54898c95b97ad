"""The report: what it says, and that nothing in a name gets out of its cell."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qpass import pipeline
from qpass.debug.report import number, write_report
from qpass.recipe import Recipe

HOSTILE = "<script>alert('x')</script> | `a` & *b*"
MEASURED = [{"model": "before", "perplexity": 38.801, "tokens/s": 1234.5}, {"model": "after", "perplexity": 38.83,
                                                                           "tokens/s": 99.5}]  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).sin())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.Sequential(Block(), Block())}).eval()
    model.forward = lambda x: model["layers"](x)  # type: ignore[method-assign]
    recipe = Recipe.parse({"name": "mixed", "linears": {"layers.1.up": "keep", "*": "w8a8-int8"}})
    trace = pipeline.trace(model, recipe, (torch.randn(3, 16),), target="reference")
    folder = tmp_path_factory.mktemp("report")
    write_report(trace, folder, title=HOSTILE, recipe=recipe, measured=MEASURED, notes=[HOSTILE])
    return folder


def test_json(written: Path) -> None:
    data = json.loads((written / "report.json").read_text())
    assert data["title"] == HOSTILE and data["target"] == "reference" and data["measured"] == MEASURED
    assert data["recipe"]["name"] == "mixed"
    quantized = [row["name"] for row in data["linears"] if row["format"]]
    assert quantized == ["layers.0.up", "layers.0.down", "layers.1.down"]
    kept = next(row for row in data["linears"] if not row["format"])
    assert kept["name"] == "layers.1.up" and kept["reason"] == "the recipe says so (layers.1.up)"
    assert next(iter(data["seconds"])) == "export" and "LOWERED" in data["seconds"]


def test_markdown(written: Path) -> None:
    text = (written / "report.md").read_text()
    assert "3 of 4 linears quantized. Weights " in text
    assert "| layers.1.up | 32x16 | the recipe says so (layers.1.up) |" in text
    assert "| layers.0-1.down | 16x32 | int8:channel:sym x int8:token:asym | reference.dequantize |" in text
    assert "joined qpass.layer\\_norm" in text and "stands alone: it reads sin, which no fusion joins" in text
    assert "| after | 38.83 | 99.5 |" in text and "| before | 38.8 | 1,234 |" in text
    assert "\\<script>alert('x')\\</script> \\| \\`a\\` & \\*b\\*" in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open, "every tag is closed"
    assert not page.links and "url(" not in text and "@import" not in text, "nothing is fetched"
    assert "script" not in page.tags and "&lt;script&gt;alert(" in text
    assert page.tags.count("details") == 16  # eight stages, each with its whole program
    assert '<span class="add">+%layers.0.norm = qpass.layer_norm(' in text


def test_stages_are_as_printed(written: Path) -> None:
    assert (written / "stages" / "02-RAISED.txt").read_text().startswith("program RAISED(")
    assert (written / "stages" / "02-RAISED.diff").read_text().startswith("ops ")
    assert not (written / "stages" / "00-CAPTURED.diff").exists()
    assert (written / "plan.txt").read_text().startswith("plan: recipe mixed on target reference")


NUMBERS = [(38.8312, "38.83"), (1234.5, "1,234"), (0.03123, "0.03123"), (7, "7"), ("a", "a")]


@pytest.mark.parametrize("value, text", NUMBERS)
def test_number(value: Any, text: str) -> None:
    assert number(value) == text
