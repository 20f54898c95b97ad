"""Pages that benchmarks write: made of the numbers beside them, and rewritten between their markers only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qpass.formats import SCHEMES, Format
from tests.bench import accuracy_formats, formats
from tests.bench.pages import between, replace_between


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<a>\nold\n</a>\nafter\n")
    for _ in range(2):
        replace_between(page, "<a>", "</a>", ["new", "lines"])
        assert page.read_text() == "before\n<a>\n\nnew\nlines\n</a>\nafter\n"
    assert between(page, "<a>", "</a>") == "new\nlines"


@pytest.mark.parametrize("text", ["<a>\n", "</a>\n", "</a>\n<a>\n", "<a>\n<a>\n</a>\n"])
def test_a_page_without_its_markers_stays_as_it_was(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md needs the lines"):
        replace_between(page, "<a>", "</a>", ["new"])
    assert page.read_text() == text


def test_the_accuracy_page_has_the_table_of_the_numbers() -> None:
    want = "\n".join(accuracy_formats.table(accuracy_formats.load())).strip()
    assert between(accuracy_formats.PAGE, accuracy_formats.BEGIN, accuracy_formats.END) == want


def test_rows_that_are_not_measured_say_so() -> None:
    record = {"machine": {"date": "-", "torch": "-", "transformers": "-"}, "float": 1.0, "calibration": 1, "text": "t",
              "cells": {"w4a8-fp": {"perplexity": 40.0, "kl": 0.01, "bits": 4.0}}}  # fmt: skip
    (row,) = [line for line in accuracy_formats.table(record) if "`w4a8-fp`" in line]
    assert row.count("not measured") == 6 and "| 40.00 |" in row and "| 10.00 |" in row


def test_every_named_format_is_timed() -> None:
    """On small tensors; a ratio is a positive number."""
    record = formats.measure(1, weight=(16, 512), rows=(4, 512)) | {"machine": {"cpu": "any"}}
    assert set(record["weights"]) >= {str(scheme.weight) for scheme in SCHEMES.values()}
    assert {str(Format.parse(name)) for name in ("mxfp4", "mxfp8", "nvfp4", "fp8-block")} <= set(record["weights"])
    ratios = [ratio for kind in ("weights", "inputs") for row in record[kind].values() for ratio in row.values()]
    assert all(ratio > 0 for ratio in ratios) and len(ratios) == 2 * (len(record["weights"]) + len(record["inputs"]))
    page = formats.page(json.loads(json.dumps(record)))
    assert all(f"| `{text}` | " in page for text in [*record["weights"], *record["inputs"]])
