"""Activations between blocks: in memory up to a budget, beyond it in safetensors files that are gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qpass.errors import OutputError
from qpass.files import write_tensors

Key = tuple[str, str, int]
"""(stream, value name, batch)."""


class Store:
    """Values by (stream, name, batch). What is not a tensor costs nothing and stays in memory.

    A tensor equal to the one put last under the same stream and name (a mask, a rotary table) is kept once.

    Args:
        budget: bytes of tensors to hold in memory; what does not fit goes to disk.
        folder: where the files go; the system's folder for temporary files if None.
    """

    def __init__(self, budget: int, folder: str | Path | None = None) -> None:
        self.budget, self.parent = budget, Path(folder) if folder is not None else None
        self.folder: Path | None = None
        self.held = self.peak = self.spilled = 0
        self.values: dict[Key, Any] = {}
        self.latest: dict[tuple[str, str], Key] = {}
        self.files = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drop everything, files too."""
        self.values.clear()
        self.latest.clear()
        self.held = 0
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def put(self, stream: str, name: str, batch: int, value: Any) -> None:
        """Keep a value. Raises OutputError where the disk does not take it; nothing that was put before is lost."""
        key = (stream, name, batch)
        if not isinstance(value, Tensor):
            self.values[key] = value
            return
        value = value.detach()
        before = self.values.get(self.latest.get((stream, name), key))
        if isinstance(before, Tensor) and _same(before, value):
            self.values[key] = before
            return
        value = value.cpu().contiguous()
        if value.untyped_storage().nbytes() > value.nbytes:
            value = value.clone()
        if self.held + value.nbytes > self.budget and value.nbytes > 0:
            self.values[key] = self._spill(value)
            return
        self.values[key] = value
        self.latest[stream, name] = key
        self.held += value.nbytes
        self.peak = max(self.peak, self.held)

    def get(self, stream: str, name: str, batch: int) -> Any:
        """The value that was put."""
        value = self.values[stream, name, batch]
        return load_file(value)["value"] if isinstance(value, Path) else value

    def drop(self, stream: str, name: str | None = None) -> None:
        """Forget a stream, or one value of it in all batches."""
        gone = [key for key in self.values if key[0] == stream and name in (None, key[1])]
        dropped = [self.values.pop(key) for key in gone]
        self.latest = {place: key for place, key in self.latest.items() if key in self.values}
        for value in dropped:
            if isinstance(value, Path):
                value.unlink(missing_ok=True)
        self._count()

    def keep_only(self, stream: str, names: Collection[str]) -> None:
        """Forget all values of a stream but those of these names."""
        for name in {key[1] for key in self.values if key[0] == stream} - set(names):
            self.drop(stream, name)

    def rename(self, stream: str, to: str) -> None:
        """Move all values of a stream to another, in place of those of the same name and batch."""
        for key in [key for key in self.values if key[0] == stream]:
            old = self.values.get((to, *key[1:]))
            if isinstance(old, Path):
                old.unlink(missing_ok=True)
            self.values[to, key[1], key[2]] = self.values.pop(key)
        self.latest = {place: key for place, key in self.latest.items() if key in self.values}
        self._count()

    def _count(self) -> None:
        unique = {value.data_ptr(): value.nbytes for value in self.values.values() if isinstance(value, Tensor)}
        self.held = sum(unique.values())

    def _spill(self, value: Tensor) -> Path:
        if self.folder is None:
            try:
                if self.parent is not None:
                    self.parent.mkdir(parents=True, exist_ok=True)
                self.folder = Path(tempfile.mkdtemp(prefix="qpass-activations-", dir=self.parent))
            except OSError as error:
                raise OutputError(f"cannot write: {error.strerror}", where=str(self.parent or tempfile.gettempdir()),
                                  fix="choose another folder, or a larger cache budget") from error
        path = self.folder / f"{self.files}.safetensors"
        self.files += 1
        write_tensors(path, {"value": value}, {})
        self.spilled += value.nbytes
        return path


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two.to(one.device))
