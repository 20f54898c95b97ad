"""Checkpoints: whole files, equal bytes; a run that is killed goes on to the same result; other inputs are refused."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from qpass.errors import InputError, OutputError
from qpass.files import write_tensors
from qpass.graph.program import materialise
from qpass.learn import fit
from qpass.passes.quantise import quantise
from tests import tiny
from tests.learn.helpers import W3, W4A4, batches, recipe, solved

LAYERS = 4


def run(folder: Path, artefact: Path | None = None, **learning) -> None:
    """Learn, and write what is quantized."""
    made = recipe(["lwc", "let"], W4A4, folder=str(folder), cache_mib=0.001, **{"epochs": 3, **learning})
    after = quantise(solved(tiny.raised("rms", layers=LAYERS), made, [tiny.ids(), tiny.ids() * 3 % tiny.VOCAB]))
    if artefact is not None:
        write_tensors(artefact, dict(sorted(materialise(after).items())), {})


def bytes_of(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_runs_write_equal_bytes(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, tmp_path / f"{name}.safetensors")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert sorted(bytes_of(tmp_path / "a")) == [*(f"block-00{n}.safetensors" for n in range(LAYERS)), "run.json"]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_finished_run_learns_nothing_again(tmp_path, monkeypatch):
    run(tmp_path / "a", tmp_path / "one.safetensors")
    monkeypatch.setattr(fit, "_Run", None)  # nobody may train
    run(tmp_path / "a", tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_killed_at_random_moments(tmp_path):
    """Twenty times: a process is killed without warning, another goes on, and the result has the same bytes."""
    began = time.perf_counter()
    run(tmp_path / "whole", tmp_path / "want.safetensors")  # also what the forked processes need is cached by now
    seconds = time.perf_counter() - began
    want = bytes_of(tmp_path / "whole"), (tmp_path / "want.safetensors").read_bytes()
    fork, draw = multiprocessing.get_context("fork"), random.Random(0)
    reached = set()
    for number in range(20):
        folder, artefact = tmp_path / str(number), tmp_path / f"{number}.safetensors"
        child = fork.Process(target=run, args=(folder, artefact))
        child.start()
        time.sleep(draw.uniform(0.02, 1.0) * seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        reached.add(len(list(folder.glob("block-*"))) if folder.exists() else 0)
        run(folder, artefact)
        assert (bytes_of(folder), artefact.read_bytes()) == want
    assert len(reached) > 1  # it was not always killed at the same place


def test_what_a_kill_leaves_of_activations_does_not_matter(tmp_path):
    run(tmp_path / "a", tmp_path / "one.safetensors")
    (tmp_path / "a" / "block-003.safetensors").unlink()
    (tmp_path / "a" / "qpass-activations-old").mkdir()
    killed, alive = tmp_path / "a" / f".block-003.safetensors.{2**31 - 1}", tmp_path / "a" / ".block-003.safetensors.1"
    for half in (killed, alive):
        half.write_bytes(b"half")
    run(tmp_path / "a", tmp_path / "two.safetensors")
    assert alive.exists() and not killed.exists()
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


CHANGES = (
    ({"epochs": 4}, "settings"),
    ({"seed": 1}, "settings"),
    ({"scheme": W3}, "graph"),
    ({"methods": ["lwc"]}, "methods"),
    ({"data": batches(2)}, "calibration"),
    ({"style": "layer"}, "graph"),
    ({"weight": True}, "weights"),
)


@pytest.mark.parametrize(("change", "field"), CHANGES)
def test_other_inputs_are_refused(tmp_path, change, field):
    def go(methods=("lwc", "let"), scheme=W4A4, data=None, style="rms", weight=False, **learning):
        made = recipe(list(methods), scheme, folder=str(tmp_path), **{"epochs": 3, **learning})
        program = tiny.raised(style)
        if weight:
            name = "layers.1.norm1.weight"
            params = {**program.params, name: program.tensor(name) + 1e-3}
            program = type(program)(**{**vars(program), "params": params})
        solved(program, made, data or [tiny.ids()])

    go()
    before = bytes_of(tmp_path)
    with pytest.raises(InputError) as error:
        go(**change)
    assert "the folder holds another run" in str(error.value) and f"{field}: " in str(error.value)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("change", [{"cache_mib": 5}, {"progress": True}])
def test_settings_that_do_not_matter_may_change(tmp_path, change):
    run(tmp_path / "a")
    before = bytes_of(tmp_path / "a")
    made = recipe(["lwc", "let"], W4A4, folder=str(tmp_path / "a"), **{"epochs": 3, "cache_mib": 0.001, **change})
    solved(tiny.raised("rms", layers=LAYERS), made, [tiny.ids(), tiny.ids() * 3 % tiny.VOCAB])
    assert bytes_of(tmp_path / "a") == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_file_is_named(tmp_path, content):
    run(tmp_path)
    (tmp_path / "block-001.safetensors").write_bytes(content)
    with pytest.raises(OutputError, match=r"not a checkpoint.*block-001"):
        run(tmp_path)


def test_a_broken_page_is_named(tmp_path):
    run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"cannot read the run.*run\.json"):
        run(tmp_path)


def test_torch_threads_are_part_of_a_run(tmp_path):
    run(tmp_path)
    torch.set_num_threads(2)
    try:
        with pytest.raises(InputError, match="threads: 1 there, 2 now"):
            run(tmp_path)
    finally:
        torch.set_num_threads(1)
