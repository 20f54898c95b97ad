"""Output on disk: whole files or none. What is written appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from qpass.errors import OutputError


@contextlib.contextmanager
def output_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A hidden folder inside ``path`` to write into; its files move to ``path`` when the block ends well.

    Entered before long work, it finds out at once that the folder cannot be written. When the block raises, Ctrl-C
    included, nothing is left: no partial file, and no folder that was not there before.

    Args:
        path: the folder; made if it does not exist.
        force: write into a folder that is not empty. Files of the same name are replaced, others stay.

    Raises:
        OutputError: the folder cannot be made or written, or is not empty.
    """
    folder = Path(path)
    made = _make(folder)
    with _as_output_error(folder):
        occupied = any(folder.iterdir())
    if occupied and not force:
        raise OutputError("the output folder is not empty", where=str(folder),
                          fix="choose another folder, or pass --force to replace the files in it")  # fmt: skip
    staging = None
    try:
        with _as_output_error(folder):
            staging = Path(tempfile.mkdtemp(prefix=".qpass-", dir=folder))
        yield staging
        with _as_output_error(folder):
            _move(staging, folder)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it, then rename. Raises OutputError."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as ``write_text`` does."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file as ``write_text`` does. Tensors that share memory are written twice."""
    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        dense[name] = tensor.detach().clone() if address in seen else tensor.detach().contiguous()
        seen.add(address)
    with _replacing(path) as temporary:
        temporary.touch()  # safetensors makes files that only their owner may read
        mode = temporary.stat().st_mode
        save_file(dense, temporary, metadata=dict(metadata))
        temporary.chmod(mode)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it when the block ends well and removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
            _remove_left_behind(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """Remove the temporary files of this name whose process was killed before it could."""
    prefix = f".{path.name}."
    for left in path.parent.iterdir():
        number = left.name.removeprefix(prefix)
        if left.name.startswith(prefix) and number.isdecimal() and not _alive(int(number)):
            with contextlib.suppress(OSError):
                left.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks only
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # another user's, or not to be told
    return True


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fix = "choose a folder that you may write to, on a disk with space"
        raise OutputError(f"cannot write: {reason}", where=str(path), fix=fix) from error


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were not there, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    with _as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _move(staging: Path, folder: Path) -> None:
    for source in sorted(staging.rglob("*")):
        target = folder / source.relative_to(staging)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            source.replace(target)
