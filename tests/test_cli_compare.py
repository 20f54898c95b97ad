"""The commands ``plot`` and ``compare-formats``: what they print and write, and how they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qpass import pipeline
from qpass.__main__ import main
from tests.debug import small
from tests.test_cli import NO_MODEL

WRITTEN = {"compare-formats.md", "compare-formats.json", "compare-formats.png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small.causal(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small.encoder(tmp_path_factory.mktemp("encoder"))


PAGES = (["plot"], *(["plot", kind] for kind in ("activations", "grids", "blocks", "ranges")), ["compare-formats"])


@pytest.mark.parametrize("words", PAGES)
def test_help_ends_with_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    assert "\nexample: python -m qpass " + " ".join(words) in capsys.readouterr().out


def test_plot_activations(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plot", "activations", model, "--tokens", "300", "-o", str(tmp_path / "a" / "b")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "activations.png, activations.json (8 inputs of linears)" in out
    data = json.loads((tmp_path / "a/b/activations.json").read_text())
    assert data["tokens"] == 300 and {one["block"] for one in data["inputs"]} == {"model.layers.0", "model.layers.1"}
    assert main(words) == 0  # again, over the files of the first time


@pytest.mark.parametrize("option", ["--text", "--calibration"])
def test_plot_activations_of_an_encoder(encoder: str, option: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The city of Paris is old. " * 20)
    assert main(["plot", "activations", encoder, option, str(file), "-o", str(tmp_path / "out")]) == 0
    data = json.loads((tmp_path / "out/activations.json").read_text())
    assert 100 < data["tokens"] < 400  # in pieces of 24, which is all that the model takes
    assert ["encoder.layer.0.intermediate.dense"] in [one["linears"] for one in data["inputs"]]


def test_plot_grids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "grids", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "INT8, with zero point: SQNR " in out and {path.name for path in tmp_path.iterdir()} == {"grids.png",
                                                                                                  "grids.json"}


def test_compare_formats(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The city of Paris is old. " * 200)
    words = ["--formats", "w8a8-int8, w8a8-int-fp", "lorc+w4a8-fp-g16", "w4a8-fp", "--tokens", "80"]
    out = tmp_path / "out"
    assert main(["compare-formats", model, *words, "--calibration", str(file), "-o", str(out)]) == 0
    printed, shown = capsys.readouterr()
    for line in ("scheme ", "float ", "w8a8-int8 ", "w4a8-fp  ", "INT8 or FP8 activations?", f"wrote {out}: "):
        assert f"\n{line}" in f"\n{printed}"
    assert "cannot run: a group of 256 is wider than" in printed and "  3/5 w8a8-int-fp\n" in shown
    assert {path.name for path in out.iterdir()} == WRITTEN
    data = json.loads((out / "compare-formats.json").read_text())
    assert data["calibration"] == "text.txt" and data["tokens"] == 80 and len(data["rows"]) == 5


def test_compare_formats_of_an_encoder(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--formats", "w8a8-int8", "w8a8-fp8", "--weights-only", "--tokens", "96", "-o", str(tmp_path)]
    assert main(["compare-formats", encoder, *words]) == 0
    assert "cosine similarity" in capsys.readouterr().out
    assert "1 - cosine similarity" in (tmp_path / "compare-formats.md").read_text()


def test_plots_of_learning(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with checkpoints, the figure of its blocks, and that of a block's ranges, which goes on from them."""
    run, out, text = str(tmp_path / "run"), tmp_path / "plots", tmp_path / "train.txt"
    text.write_text("All the world is a stage, and all the men and women merely players. " * 20)
    learn = ["--calibration", str(text), "--sequences", "2", "--length", "16", "--set", "learning.steps=3",
             "--set", "let.rate=0.02", "--checkpoints", run]  # fmt: skip
    ranges = ["plot", "ranges", model, "omniquant-w4a4", *learn, "-o", str(out)]
    assert main([*ranges, "--block", "model.layers.0"]) == 0
    words = capsys.readouterr().out
    assert "self_attn.{q,k,v}_proj: largest channel over the median " in words and "(model.layers.0)" in words
    first = (out / "ranges.json").read_text()
    inputs = json.loads(first)["inputs"]
    assert len(inputs) == 4 and any(one["before"] != one["after"] for one in inputs)
    stamps = {path.name: path.stat().st_mtime_ns for path in Path(run).iterdir()}
    assert len(stamps) == 3
    assert main([*ranges, "--block", "model.layers.0"]) == 0  # nothing is learned again
    assert (out / "ranges.json").read_text() == first
    assert {path.name: path.stat().st_mtime_ns for path in Path(run).iterdir()} == stamps
    assert main(["plot", "blocks", run, "-o", str(out)]) == 0
    blocks = json.loads((out / "blocks.json").read_text())["blocks"]
    assert [one["block"] for one in blocks] == ["model.layers.0", "model.layers.1"]
    assert all(set(one["losses"]) == {"rtn", "start", "best"} for one in blocks)
    assert {path.name for path in out.glob("*.png")} == {"ranges.png", "blocks.png"}
    capsys.readouterr()
    assert main([*ranges, "--block", "model.layers.7"]) == 2
    assert "there is no block 'model.layers.7'" in capsys.readouterr().err
    assert main([*ranges, "--set", "learning.seed=1"]) == 2
    assert "the folder holds another run; settings" in capsys.readouterr().err


DATA = ("pass calibration=[batch, ...] to qpass.compile, each batch what the model is called with, or --calibration "
        "FILE on the command line")  # fmt: skip
ERRORS = {
    "no plot": (["plot"], 2, "the following arguments are required: PLOT. Fix: see qpass plot --help."),
    "plot": (["plot", "grid"], 2, "argument PLOT: unknown 'grid'. Fix: use 'grids'."),
    "model": (["plot", "activations", "./nowhere"], 2,
              f"there is no such model folder (at ./nowhere). Fix: {NO_MODEL}."),
    "text": (["plot", "activations", "demo", "--text", "no.txt"], 2,
             "cannot read the text: No such file or directory (at no.txt). Fix: pass a text file."),
    "empty text": (["plot", "activations", "demo", "--text", "/dev/null"], 2,
                   "0 tokens of text, and it takes 1 (at /dev/null). Fix: pass a longer text, or more tokens."),
    "tokens": (["plot", "activations", "demo", "--tokens", "0"], 2,
               "argument --tokens: invalid count of 1 or more value: '0'. Fix: see qpass plot activations --help."),
    "folder": (["plot", "grids", "-o", f"{__file__}/out"], 5,
               f"cannot write: Not a directory (at {__file__}/out). Fix: choose a folder that you may "
               "write to, on a disk with space."),
    "run": (["plot", "blocks", "nowhere"], 2,
            "there is no finished block of a run (at nowhere). Fix: pass the folder that --checkpoints or "
            "learning.folder named."),
    "no text": (["plot", "ranges", "demo", "omniquant-w4a4"], 2,
                "ranges are those on some text, and there is none (at --calibration). Fix: pass --calibration FILE."),
    "set": (["plot", "ranges", "demo", "omniquant-w4a4", "--set", "learning.step=3"], 2,
            "unknown field 'step' (at learning). Fix: use 'steps'."),
    "format": (["compare-formats", "demo", "--formats", "w8a8-int8", "w4a8-fb"], 2,
               "unknown scheme 'w4a8-fb'. Fix: use 'w4a8-fp'."),
    "no format": (["compare-formats", "demo", "--formats", ","], 2,
                  "there is no format to compare (at --formats). Fix: name at least one, or leave it out."),
    "no data": (["compare-formats", "demo", "--formats", "gptq+w4a8-fp"], 2,
                f"the method gptq looks at data, and there is none (at calibration). Fix: {DATA}."),
    "no model": (["compare-formats", "--formats", "w8a8-int8"], 2,
                 "the following arguments are required: MODEL. Fix: see qpass compare-formats --help."),
    "calibration": (["compare-formats", "demo", "--calibration", "no.txt"], 2,
                    "cannot read the text: No such file or directory (at no.txt). Fix: pass a text file."),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_say_what_to_do(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "capture", lambda model: pytest.fail("found after the model was captured"))
    monkeypatch.chdir(tmp_path)
    argv, code, text = ERRORS[case]
    assert main(argv) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"qpass: error: {text}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["plot", "grids"], ["plot", "activations", "demo"], ["compare-formats", "demo"]])
def test_without_matplotlib(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert 'Fix: pip install "qpass[plots]", or pip install matplotlib.' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
