"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from qpass import arguments, cli, pipeline
from qpass.__main__ import main
from qpass.errors import InputError, OutputError
from qpass.files import output_folder, write_tensors, write_text
from qpass.graph.program import Program
from qpass.loading import load_calibration
from qpass.lowering.cpu import kernels
from qpass.sites import Analysis
from qpass.sites.site import Site
from tests.sites import written

GOLDEN = Path(__file__).parent / "golden" / "list.txt"
COMMANDS = ("demo", "plan", "compile", "show", "diff", "ranges", "sites", "plot", "compare-formats", "list")
FAST = ["--target", "reference"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random language model of two layers."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export each model once: it takes seconds, and programs are never edited."""
    capture = pipeline.capture

    def cached(model: Any, *args: Any, **kwargs: Any) -> Program:
        key = (model.config.name_or_path, model.dtype)
        if key not in _CAPTURED:
            _CAPTURED[key] = capture(model, *args, **kwargs)
        return _CAPTURED[key]

    monkeypatch.setattr(pipeline, "capture", cached)


_CAPTURED: dict[Any, Program] = {}


# -------------------------------------------------------------------------------------------------------------- help


def test_help_lists_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command}" in out
    assert "start here: python -m qpass demo" in out and "130 Ctrl-C" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_ends_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"\nexample: python -m qpass {command}" in capsys.readouterr().out


def test_compile_help_says_that_its_files_do_not_load(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compile", "--help"])
    assert "cannot be loaded back from DIR yet" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- calibration


def _one_site(program: Program) -> Analysis:
    """Stands in for the analysis, which has tests of its own."""
    norm, attention = "model.layers.0.input_layernorm", "model.layers.0.self_attn"
    index = torch.arange(16)
    axes = [written.axis(f"{norm}.weight", 0, index, -1.0, "affine", norm)]
    axes += [written.columns(f"{attention}.{name}_proj", index, norm) for name in "qkv"]
    return Analysis((Site(f"{norm} -> q, k, v", "linear-norm", 16, tuple(axes)),))


def test_a_method_with_data(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qpass.passes.calibrate.analyse", _one_site)
    batches = [torch.arange(8)[None], torch.arange(20, 30)[None]]
    monkeypatch.setattr(arguments, "load_calibration", lambda name, path, **sizes: batches)
    assert main(["plan", model, "smoothquant-w8a8", *FAST, "--calibration", "text.txt"]) == 0
    assert "\nmethod smoothquant: 1 exact edits on 1 sites\n" in capsys.readouterr().out
    out = str(tmp_path / "out")
    assert main(["compile", model, "smoothquant-w8a8", *FAST, "--calibration", "text.txt", "-o", out]) == 0
    assert "method smoothquant: 1 exact edits" in capsys.readouterr().out
    text = (tmp_path / "out/stages/04-SOLVED.txt").read_text()
    assert re.search(r"layers.0.input_layernorm.weight : f32\[16\] #[0-9a-f]{4} <- smoothquant: / s\n", text)
    assert json.loads((tmp_path / "out/recipe.json").read_text())["methods"] == ["smoothquant"]


def test_a_method_without_data(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", model, "smoothquant-w8a8", *FAST]) == 0
    assert "\nmethod smoothquant\n" in capsys.readouterr().out
    assert main(["compile", model, "smoothquant-w8a8", *FAST, "-o", str(tmp_path / "out")]) == 2
    assert "the method smoothquant looks at data, and there is none (at calibration)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_calibration_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The city of Paris is old. " * 40)
    pieces = load_calibration("demo", str(text), sequences=3, length=16)
    assert [tuple(piece.shape) for piece in pieces] == [(1, 16)] * 3 and pieces[0].dtype is torch.int64
    with pytest.raises(InputError, match="one sequence takes 4096"):
        load_calibration("demo", str(text), sequences=3, length=4096)
    with pytest.raises(InputError, match="cannot read the text: No such file"):
        load_calibration("demo", str(tmp_path / "none.txt"), sequences=3, length=16)


# ------------------------------------------------------------------------------------------------------------- errors

NO_MODEL = "pass a folder with config.json and *.safetensors, a hub name, or the word demo"
STAGES = "CAPTURED, NORMAL, RAISED, PLANNED, SOLVED, QUANTISED, FUSED, INTEGER, LOWERED"
ERRORS = {
    "nothing": ([], 2, "the following arguments are required: COMMAND. Fix: see qpass --help."),
    "command": (["plann"], 2, "argument COMMAND: unknown 'plann'. Fix: use 'plan'."),
    "option": (["list", "--fast"], 2, "unrecognized arguments: --fast. Fix: see qpass --help."),
    "target": (["plan", "demo", "w8a16", "--target", "tpx"], 2,
               "argument --target: unknown 'tpx'. Fix: use one of cpu, cuda, reference."),
    "tokens": (["demo", "--tokens", "0"], 2,
               "argument --tokens: invalid count of 1 or more value: '0'. Fix: see qpass demo --help."),
    "recipe": (["plan", "demo", "w8a8-int9"], 2, "unknown scheme 'w8a8-int9'. Fix: use 'w8a8-int8'."),
    "recipe of the demo": (["demo", "--recipe", "zzz"], 2, "unknown scheme 'zzz'. Fix: use one of w8a8-int8, w8a8-int8-"
                           "sym, w8a16, w4a16-g32, w4a16-g64, w4a16-g128, w4a8-int8, w8a8-fp8, w8a8-int-fp, "
                           "w8a8-fp8-block, w4a8-fp, w4a8-fp-m1, ... (python -m qpass list)."),
    "recipe file": (["plan", "demo", "no.yaml"], 2,
                    "cannot read the recipe: No such file or directory (at no.yaml). Fix: check the path."),
    "model": (["plan", "./nowhere", "w8a16"], 2, f"there is no such model folder (at ./nowhere). Fix: {NO_MODEL}."),
    "model file": (["plan", __file__, "w8a16"], 2,
                   f"the model is a file (at {__file__}). Fix: pass the folder with its config.json."),
    "stage": (["show", "demo", "w8a16", "--stage", "rased"], 2, "unknown stage 'rased'. Fix: use 'RAISED'."),
    "stages": (["diff", "demo", "w8a16", "RAISED", "Q"], 2, f"unknown stage 'Q'. Fix: use one of {STAGES}."),
    "diff": (["diff", "a", "b", "c"], 2, "diff takes two files, or a model, a recipe and two stages, and got 3 words. "
             "Fix: see qpass diff --help."),
    "diff of no file": (["diff", "a.txt", "b.txt"], 2,
                        "cannot read the file: No such file or directory (at a.txt). Fix: pass two texts that 'qpass "
                        "show' or 'qpass compile' wrote, or MODEL RECIPE STAGE_A STAGE_B."),
    "below a file": (["demo", "--out", f"{__file__}/out"], 5,
                     f"cannot write: Not a directory (at {__file__}/out). Fix: choose a folder that you may write to, "
                     "on a disk with space."),
    "read only": (["compile", "demo", "w8a16", "-o", "/proc/qpass-out"], 5,
                  "cannot write: No such file or directory (at /proc/qpass-out). Fix: choose a folder that you may "
                  "write to, on a disk with space."),
    "not empty": (["compile", "demo", "w8a16", "-o", str(Path(__file__).parent)], 5,
                  f"the output folder is not empty (at {Path(__file__).parent}). Fix: choose another folder, or pass "
                  "--force to replace the files in it."),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_say_what_to_do(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, code, text = ERRORS[case]
    assert main(argv) == code
    assert capsys.readouterr().err == f"qpass: error: {text}\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(tmp_path), "w8a16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("qpass: error: cannot load the model: ") and f"(at {tmp_path})" in error
    assert error.count("\n") == 1


def test_pickled_weights_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str) -> None:
    (tmp_path / "config.json").write_text((Path(model) / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert main(["plan", str(tmp_path), "w8a16"]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_defect_is_reported_as_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "listing", lambda: 1 / 0)
    assert main(["list"]) == 70
    want = "qpass: internal error: ZeroDivisionError: division by zero. This is a defect of qpass; please report it "
    assert capsys.readouterr().err == want + "with what --traceback prints.\n"
    assert main(["list", "--traceback"]) == 70
    assert "Traceback" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- the commands


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: None)
    assert main(["list"]) == 0
    assert capsys.readouterr().out == GOLDEN.read_text(), f"if this is meant: python -m qpass list > {GOLDEN}"


def test_list_says_why_a_kernel_cannot_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "this CPU lacks avx512f")
    main(["list"])
    out = capsys.readouterr().out
    assert "CPU kernels: not available: this CPU lacks avx512f" in out
    line = next(line for line in out.splitlines() if "cpu.int8_linear" in line)
    assert "none: this CPU lacks avx512f" in line


def test_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", model, "w8a8-int8", *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("plan: recipe w8a8-int8 on target reference\n") and "15 of 15 linears quantized" in out


def test_show(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", model, "w8a8-int8", "--stage", "raised", *FAST]) == 0
    folded = capsys.readouterr().out
    assert folded.startswith("program RAISED(") and "qpass.rms_norm" in folded
    assert main(["show", model, "w8a8-int8", "--stage", "RAISED", "--python", *FAST]) == 0
    text = capsys.readouterr().out
    assert "def forward(params, " in text
    compile(text, "show", "exec")


def test_diff(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diff", model, "w8a8-int8", "NORMAL", "RAISED", *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ops ") and "\n+%model.norm = qpass.rms_norm(" in out
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a\nb\n"), two.write_text("a\nc\n")
    assert main(["diff", str(one), str(two)]) == 0
    assert capsys.readouterr().out == f"--- {one}\n+++ {two}\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    main(["diff", str(one), str(one)])
    assert capsys.readouterr().out == "equal\n"


def test_compile_writes_everything(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "out"
    assert main(["compile", model, "w8a8-int8", "-o", str(out), *FAST]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    top = {"model.safetensors", "plan.txt", "recipe.json", "report.html", "report.json", "report.md", "stages"}
    assert {path.name for path in out.iterdir()} == top
    stages = sorted(path.name for path in (out / "stages").iterdir())
    assert stages[:3] == ["00-CAPTURED.txt", "01-NORMAL.diff", "01-NORMAL.txt"] and len(stages) == 15
    assert json.loads((out / "recipe.json").read_text()) == {"name": "w8a8-int8", "linears": {
        "*": "int8:channel:sym x int8:token:asym"}}  # fmt: skip
    modes = {path.stat().st_mode for path in out.iterdir() if path.is_file()}
    assert len(modes) == 1
    weights = load_file(out / "model.safetensors")
    assert weights["model.layers.0.mlp.up_proj.weight.codes"].dtype is torch.int8
    (out / "mine").write_text("kept")
    assert main(["compile", model, "w8a16", "-o", str(out), "--force", *FAST]) == 0
    assert (out / "mine").exists() and "w8a16" in (out / "plan.txt").read_text()


def test_a_failed_compile_leaves_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "write_tensors", lambda *args: 1 / 0)
    assert main(["compile", model, "w8a8-int8", "-o", str(tmp_path / "a" / "out"), *FAST]) == 70
    assert not list(tmp_path.iterdir())


def test_dump(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPASS_DUMP", str(tmp_path / "dump"))
    pipeline.compile(LlamaForCausalLM.from_pretrained(model).eval(), "w8a8-int8", target="reference")
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names[0] == "00-CAPTURED.txt" and names[-1] == "07-LOWERED.txt" and len(names) == 15


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--tokens", "512", "--rounds", "1", *FAST]) == 0
    out = capsys.readouterr().out
    for text in ("plan: recipe w8a8-int8", "float32, eager", "bfloat16, qpass w8a8-int8", "perplexity ", "decode runs ",
                 "writes: 'The city of Paris is", "report: qpass-out/report.html", "diffs:  qpass-out/stages"):
        assert text in out
    report = json.loads((tmp_path / "qpass-out" / "report.json").read_text())
    before, after = report["measured"][1]["perplexity"], report["measured"][2]["perplexity"]
    assert abs(after / before - 1) < 0.02


# ------------------------------------------------------------------------------------------------------------- Ctrl-C

_SLOW = """
import sys, time
from qpass import __main__, pipeline
def build(*args, **kwargs):
    print("building", flush=True)
    time.sleep(60)
pipeline.build = build
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_ctrl_c_leaves_nothing(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SLOW, "compile", model, "w8a8-int8", "-o", str(tmp_path / "out"), *FAST]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    assert process.stdout is not None
    assert "building\n" in iter(process.stdout.readline, "")
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "qpass: interrupted; no file was written"
    assert "Traceback" not in error and not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- files


def test_output_folder_moves_files_when_it_ends_well(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out") as folder:
        write_text(folder / "deep" / "a.txt", "a")
        assert not (tmp_path / "out" / "deep").exists()
    found = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))]
    assert found == ["out", "out/deep", "out/deep/a.txt"]


def test_output_folder_keeps_what_was_there_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path, force=True) as folder:
        write_text(folder / "a.txt", "new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qpass.files.save_file", full)
    with pytest.raises(OutputError, match="cannot write: No space left on device"):
        write_tensors(tmp_path / "a.safetensors", {}, {})


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    one = torch.arange(4.0)
    write_tensors(tmp_path / "a.safetensors", {"a": one, "b": one, "c": one[1:]}, {"recipe": "x"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["c"], one[1:])


def test_ranges_prints_the_proof(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ranges", model, "int-only-w8a8", "--set", "integer.context=40"]
    assert main([*words, *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bounds for 1 to 40 tokens\n") and "lm_head.whole" in out and " of 32\n" in out
    assert out.endswith("target reference: no kernel has sums of its own\n")
    assert main([*words, "--context", "33", "--full", "--target", "cpu"]) == 0
    full = capsys.readouterr().out
    assert full.startswith("bounds for 1 to 33 tokens\n") and full.count("lm_head.whole") > 5 < full.count(" of 64\n")
    if kernels.available() is None:
        assert "sums of the kernels of target cpu" in full and "low bytes of weights times values" in full
    assert main(["ranges", model, "w8a8-int8", *FAST]) == 2
    assert "w8a8-int8 leaves floats in the program" in capsys.readouterr().err


def test_sites_prints_the_table(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", model]) == 0
    exact = capsys.readouterr().out
    assert exact.startswith("scale flow: 11 sites, ") and "gated activation" not in exact
    assert main(["sites", model, "--smooth"]) == 0
    assert "gated activation" in capsys.readouterr().out
