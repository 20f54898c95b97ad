"""What qpass ships, so that the demonstration and the tests need no download: a small real Llama and a text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from qpass.errors import InputError

DESCRIPTION = "a small Llama (5.5 million parameters, trained on WikiText-2)"
_MODEL = "llama-wt2"
_TEXT = "wikitext-2-test-slice.txt"


def model_path() -> Path:
    """Folder of the shipped Llama, in Hugging Face format (5.5 million parameters, bfloat16, with its tokenizer)."""
    return _asset(_MODEL)


def evaluation_text() -> str:
    """About 160 KB of the official WikiText-2 test split: its first eight articles, whole."""
    return _asset(_TEXT).read_text(encoding="utf-8")


def _asset(name: str) -> Path:
    # transformers needs a folder on disk, which a package inside a zip archive does not have.
    path = Path(str(files(__name__).joinpath(name)))
    if not path.exists():
        fix = "install qpass with pip, unpacked, and not as a zip import"
        raise InputError("a shipped asset is not on disk", where=str(path), fix=fix)
    return path
