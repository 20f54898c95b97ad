"""Activations within a budget: what does not fit goes to disk and comes back bit for bit."""

from __future__ import annotations

import errno

import pytest
import torch

from qpass.errors import OutputError
from qpass.observe import store as module
from qpass.observe.store import Store


def test_spills_past_the_budget_and_comes_back(tmp_path):
    values = [torch.randn(10, 10) for _ in range(5)]
    with Store(1000, tmp_path) as store:
        for number, value in enumerate(values):
            store.put("a", "x", number, value)
        assert store.held == 800 and store.spilled == 1200
        assert len(list(tmp_path.rglob("*.safetensors"))) == 3
        for number, value in enumerate(values):
            assert torch.equal(store.get("a", "x", number), value)
        store.drop("a", "x")
        assert store.held == 0 and not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.iterdir())


def test_equal_tensors_are_kept_once(tmp_path):
    mask = torch.ones(20, 20)
    with Store(1 << 20, tmp_path) as store:
        for number in range(8):
            store.put("shared", "mask", number, mask.clone())
            store.put("shared", "size", number, number)
        assert store.held == mask.nbytes
        assert [store.get("shared", "size", number) for number in range(8)] == list(range(8))


def test_a_view_does_not_hold_the_whole(tmp_path):
    with Store(1 << 20, tmp_path) as store:
        store.put("a", "x", 0, torch.randn(1000, 4)[:2])
        assert store.get("a", "x", 0).untyped_storage().nbytes() == 32


def test_rename_replaces_and_keeps_others(tmp_path):
    with Store(0, tmp_path) as store:
        store.put("old", "x", 0, torch.zeros(3))
        store.put("old", "y", 0, torch.ones(3))
        store.put("new", "x", 0, torch.full((3,), 2.0))
        store.rename("new", "old")
        assert store.get("old", "x", 0).tolist() == [2, 2, 2] and store.get("old", "y", 0).tolist() == [1, 1, 1]
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2
        store.keep_only("old", {"y"})
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_out_of_disk(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(0, tmp_path)
    store.put("a", "x", 0, torch.zeros(3))
    monkeypatch.setattr("qpass.files.save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        store.put("a", "x", 1, torch.zeros(4))
    assert store.get("a", "x", 0).tolist() == [0, 0, 0]
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        Store(0, tmp_path).put("a", "x", 0, torch.zeros(3))
