"""What cannot be learned from: an error by then, the program as it was, a folder that serves."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from dataclasses import replace

import pytest
import torch

from qpass.errors import InputError, NumericsError, OutputError, QPassError, RecipeError, UnsupportedError
from qpass.learn.checkpoint import digest
from qpass.observe import store
from qpass.passes.quantise import quantise
from tests import tiny
from tests.learn.helpers import W3, batches, recipe, solved

STATIC = tiny.raised("rms", layers=4)  # takes [2, 5] only


def poisoned(value):
    program = tiny.raised()
    table = program.tensor("embed.weight").clone()
    table[5] = value
    return replace(program, params={**program.params, "embed.weight": table})


FIVES = [torch.full((1, 4), 5)]
PLAIN = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
WITHOUT = tiny.raise_ops(tiny.normalise(tiny.export(PLAIN, torch.randn(2, 16))))
CASES = {
    "empty": (tiny.raised(), ["lwc"], W3, [], InputError, "there is no calibration batch"),
    "ragged": (STATIC, ["lwc"], W3, [tiny.ids(), tiny.ids(2, 7)], InputError, "calibration batch 1"),
    "another call": (tiny.raised(), ["lwc"], W3, [(tiny.ids(), tiny.ids())], InputError, "calibration batch 0"),
    "NaN": (poisoned(float("nan")), ["lwc"], W3, [tiny.ids(1, 1) + 1, *FIVES], NumericsError, "NaN in %"),
    "Inf": (poisoned(float("inf")), ["lwc"], W3, FIVES, NumericsError, "in %"),
    "no block": (WITHOUT, ["lwc"], W3, [torch.randn(2, 16)], UnsupportedError, "no repeated block"),
    "no site": (tiny.raised(), [{"let": {"kinds": ["linear-norm"], "include": ["norm.weight"]}}], "w4a4", None,
                RecipeError, "let has nothing to learn"),
    "no format": (tiny.raised(), ["lwc"], "w8a8-fp8", None, RecipeError, "lwc has nothing to learn"),
}  # fmt: skip


def fingerprints(program):
    return {name: digest(program.tensor(name)) for name in program.params}


@pytest.mark.parametrize("case", CASES)
def test_an_error_that_says_where(tmp_path, case):
    program, methods, scheme, data, error, message = CASES[case]
    before = fingerprints(program)
    with pytest.raises(error) as found:
        solved(program, recipe(methods, scheme, folder=str(tmp_path / "run")), data)
    assert isinstance(found.value, QPassError) and message in str(found.value) and found.value.fix
    assert fingerprints(program) == before
    assert not list(tmp_path.glob("run/block-*")) and not list(tmp_path.glob("run/qpass-*"))


def result(made, program=None):
    after = quantise(solved(program or tiny.raised(), made))
    whole = hashlib.sha256()
    for name in sorted(after.used_params()):
        whole.update(digest(after.tensor(name)))
    return whole.hexdigest()


@functools.cache
def want():
    return result(recipe(["lwc"], W3, epochs=2))


def fails(made, message):
    with pytest.raises(OutputError, match=message) as found:
        solved(tiny.raised(), made)
    assert found.value.fix


@pytest.mark.parametrize("writes", [0, 9, 15])
def test_a_full_disk(tmp_path, monkeypatch, writes):
    """At the first activation, and in the middle of the first and of the second block."""
    count, write = [0], store.write_tensors

    def full(path, *rest):
        count[0] += 1
        if count[0] > writes:
            raise OutputError("cannot write: No space left on device", where=str(path), fix="free some")
        write(path, *rest)

    made = recipe(["lwc"], W3, epochs=2, cache_mib=0, folder=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_tensors", full)
        fails(made, "No space left")
    assert count[0] > writes and not list(tmp_path.glob("qpass-activations-*"))
    assert result(made) == want()


def test_a_cache_folder_that_cannot_be_written(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    fails(recipe(["lwc"], W3, cache_mib=0), "cannot write: Permission denied")
    monkeypatch.undo()
    assert result(recipe(["lwc"], W3, epochs=2, cache_mib=0)) == want()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    fails(recipe(["lwc"], W3, folder=str(tmp_path / "run")), "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_takes_no_file(tmp_path, monkeypatch):
    """As a read-only one, which the superuser may write to."""
    folder = tmp_path / "run"
    made = recipe(["lwc"], W3, epochs=2, folder=str(folder))
    solved(tiny.raised(), made)
    (folder / "block-001.safetensors").unlink()
    monkeypatch.setattr("qpass.learn.checkpoint.write_tensors", lambda path, *rest: _refused(path))
    fails(made, "cannot write: Read-only file system")
    monkeypatch.undo()
    assert result(made) == want()


def _refused(path):
    raise OutputError("cannot write: Read-only file system", where=str(path), fix="choose another folder")


def test_batches_of_the_right_shape_are_fine():
    assert solved(STATIC, recipe(["lwc"], W3, epochs=1), [batches(1, 5)[0]]).stage == "SOLVED"
