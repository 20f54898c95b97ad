"""Checkpoints of a run: one file a block, written whole or not at all, and a page that says what the run was.

    run.json                   the facts that the result depends on
    block-000.safetensors      what was learned in a block, and in its metadata what became of it

Two runs with the same facts write the same bytes. A run that finds its own files goes on behind the last of an unbroken
row; one with other facts is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qpass.errors import InputError, OutputError
from qpass.files import write_tensors, write_text
from qpass.graph.program import Program

_PAGE = "run.json"


@dataclass(frozen=True)
class Record:
    """What became of one block. Equal runs have equal records.

    Args:
        block: its name.
        kept: whether anything of it was learned; otherwise it is rounded to nearest.
        losses: as in ``fit.Fit``.
        halved: steps that were not finite.
        why: why nothing was kept.
        tensors: what was learned, by key.
    """

    block: str
    kept: bool
    losses: dict[str, float]
    halved: int = 0
    why: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The files of one run in a folder; without a folder nothing is written and nothing found.

    Raises:
        InputError: the folder holds a run with other facts; with the fields that differ.
        OutputError: the folder cannot be read or written.
    """

    def __init__(self, folder: str, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder) if folder else None
        if self.folder is None:
            return
        page = self.folder / _PAGE
        text = json.dumps(dict(facts), indent=1, sort_keys=True) + "\n"
        if page.exists():
            self._compare(page, json.loads(text))
        else:
            write_text(page, text)

    def _compare(self, page: Path, facts: Mapping[str, Any]) -> None:
        try:
            found = json.loads(page.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"cannot read the run: {error}", where=str(page), fix="remove the folder") from error
        differ = sorted(name for name in {*facts, *found} if facts.get(name) != found.get(name))
        if differ:
            texts = [f"{name}: {_short(found.get(name))} there, {_short(facts.get(name))} now" for name in differ]
            raise InputError(f"the folder holds another run; {'; '.join(texts)}", where=str(page.parent),
                             fix="choose another folder, or remove this one")  # fmt: skip

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:03}.safetensors"

    def load(self, number: int) -> Record | None:
        """The record of a block, or None. Raises OutputError for a file that is not one."""
        if self.folder is None or not self._path(number).exists():
            return None
        return _read(self._path(number))

    def save(self, number: int, record: Record) -> None:
        """Write the record of a block."""
        if self.folder is None:
            return
        facts = {key: value for key, value in asdict(_plain(record)).items() if key != "tensors"}
        tensors = {key: tensor.cpu() for key, tensor in sorted(record.tensors.items())}
        write_tensors(self._path(number), tensors, {"record": json.dumps(facts, sort_keys=True)})


def records(folder: Path) -> list[Record]:
    """The finished blocks of any run, in order. Raises OutputError for a file that is none."""
    return [_read(path) for path in sorted(folder.glob("block-*.safetensors"), key=lambda path: (len(path.name), path))]


def _read(path: Path) -> Record:
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["record"])
            return Record(**facts, tensors={key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise OutputError(f"not a checkpoint: {error}", where=str(path), fix="remove it") from error


def _plain(record: Record) -> Record:
    return Record(record.block, record.kept, record.losses, record.halved, record.why)


def facts_of(
    program: Program, inputs: Sequence[Sequence[Any]], methods: Iterable[Any], settings: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """What the result of a run depends on, as plain data: fingerprints of the graph, the weights and the batches."""
    graph = hashlib.sha256()
    for node in program.graph.nodes:
        plan = getattr(node.meta.get("plan", node.meta.get("attention")), "scheme", None)
        graph.update(f"{node.op} {node.meta.get('name')} {node.target} {node.args} {node.kwargs} {plan}\n".encode())
    weights = hashlib.sha256()
    for name in sorted(program.used_params()):
        weights.update(name.encode() + digest(program.tensor(name)))
    data = hashlib.sha256()
    for batch in inputs:
        for value in batch:
            data.update(digest(value) if isinstance(value, Tensor) else repr(value).encode())
    return {
        "graph": graph.hexdigest(), "weights": weights.hexdigest(), "calibration": data.hexdigest(),
        "batches": len(inputs), "methods": list(methods), "settings": dict(settings), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "format": 1,
    }  # fmt: skip


def digest(tensor: Tensor) -> bytes:
    """A fingerprint of type, shape and bits."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    found.update(flat.numpy().data if tensor.numel() else b"")
    return found.digest()


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
