"""The GPU benchmark without a GPU: its cases are built and checked, and its page says what it is."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

from tests.bench import gpu, gpu_model, gpu_page, gpu_peers
from tests.bench.gpu_cases import FORMS, SHAPES, Linear
from tests.bench.gpu_integer import TINY, cases


def test_every_case_is_right() -> None:
    records = gpu.dry()
    assert {record["form"] for record in records if "form" in record} == set(FORMS)
    assert {record["integer"] for record in records if "integer" in record} == set(cases(TINY, 1, "cpu"))
    assert all(record["kernel"].startswith("cuda.") for record in records)


def test_every_peer_is_made_or_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = Linear(FORMS["w4a16-g128"], (48, 256), 1, 1, "cpu", 0)
    monkeypatch.setattr(gpu_peers.importlib.util, "find_spec", lambda name: None)
    for form, names in gpu_peers.PEERS.items():
        calls, skipped = gpu_peers.peers(form, linear, 1)
        assert calls == {} and skipped == {name: f"{package} is not installed" for name, package in names.items()}


@pytest.mark.parametrize("part", gpu.PARTS)
def test_a_part_says_what_it_may_take(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--part", part])
    text = gpu.estimate(gpu._arguments())
    assert text.startswith(f"{part}: ") and "minutes by guess" in text and "no case begins after 8.5 minutes" in text


def test_the_page_without_and_with_results() -> None:
    assert "Not yet measured" in gpu_page.page({}) and "0.80 of the roofline" in gpu_page.page({})
    n, k = SHAPES["8b o"]
    times = {"ours": [3.0, 4.0, 5.0], "bf16": [8.0]}
    linear = {"shape": "8b o", "n": n, "k": k, "form": "w4a16-g128", "rows": 1, "bits": 4.0, "eight": False,
              "error": 1e-3, "limit": 2.5e-3, "equal": True, "us": times}  # fmt: skip
    rates = [{"name": "copy", "us": 1.0, "rate": 4.3e12}, {"name": "bf16", "us": 1.0, "rate": 790e12}]
    # 4096² / 2 bytes of weights, 8 KiB in, 8 KiB out, over 4.3 TB/s
    least = (n * k / 2 + 2 * k + 2 * n) / 4.3e12 * 1e6
    assert gpu_page.roofline(linear, {one["name"]: one["rate"] for one in rates}) == pytest.approx(least)
    kept = {"device": {"name": "a GPU", "torch": "2"}, "ceilings": rates,
            "decode": [linear, {**linear, "equal": False}],
            "model": [{"name": "bf16", "what": "decode 1", "layers": 4, "ms": 2.0},
                      {"name": "w4", "what": "decode 1", "layers": 4, "ms": 1.0}]}  # fmt: skip
    text = gpu_page.page(kept)
    assert f"| 4.0 | {least / 4:.2f} | bf16 2.00 | 1.0e-03 |" in text and text.count("**wrong**") == 1
    assert "| decode 1 | 4 | w4 | 1.00 | 2.00 |" in text and "Not yet" not in text


def test_the_page_in_the_repository_is_what_is_kept() -> None:
    kept = json.loads(gpu_page.FILE.read_text()) if gpu_page.FILE.exists() else {}
    assert gpu_page.PAGE.read_text() == gpu_page.page(kept)


def test_a_step_of_a_model_can_be_repeated() -> None:
    model = gpu_model.make(1, gpu_model.SMALL, "cpu")
    with torch.no_grad():
        run = gpu_model.step(model, 2, 1, 5)
        assert torch.equal(run(), run()) and run().shape == (2, 1, 64)
    records = [{"name": "x", "what": "w", "layers": layers, "ms": 1.0 + layers} for layers in (4, 8)]
    assert gpu_model.extrapolated(records)[0]["ms"] == 33.0
