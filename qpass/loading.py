"""A model by the name that a user types: a folder, a name on the Hugging Face hub, or ``demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers

from qpass.assets import evaluation_text, model_path
from qpass.errors import InputError, QPassError

DTYPES = ("auto", "float32", "bfloat16")
_LONGEST_TOKEN = 32  # characters, more than tokens have on average in any script
_CAUSAL = ("ForCausalLM", "LMHeadModel")


def load_model(name: str, *, dtype: str = "auto") -> Any:
    """A model in eval mode. Weights are read from safetensors files only, and no code of the repository is run.

    Args:
        name: folder, hub name, or ``demo`` for the model that qpass ships.
        dtype: ``auto`` keeps the checkpoint's own.

    Raises:
        InputError: no such folder or name, no safetensors weights, or an architecture that transformers does not have.
    """
    source = resolve(name)
    options = {"trust_remote_code": False, "use_safetensors": True, "dtype": dtype}
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        causal = any(str(kind).endswith(_CAUSAL) for kind in getattr(config, "architectures", None) or ())
        loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
        return loader.from_pretrained(source, **options).eval()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _cannot("load the model", name, error) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer in the model's folder. Raises InputError."""
    try:
        return transformers.AutoTokenizer.from_pretrained(resolve(name), trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        raise _cannot("load the tokenizer", name, error) from error


def load_calibration(name: str, path: str, *, sequences: int, length: int) -> list[torch.Tensor]:
    """Token ids [1, length] for the methods of a recipe: the first ``sequences`` pieces of a text file, in order.

    Args:
        name: the model, whose tokenizer is used.
        length: tokens of a piece.

    Raises:
        InputError: a file that cannot be read, or that is too short for one piece.
    """
    ids = load_ids(name, path, most=sequences * length)
    pieces = list(ids[: len(ids) // length * length].view(-1, 1, length))
    if not pieces:
        raise InputError(f"the calibration text has {len(ids)} tokens, one sequence takes {length}", where=path,
                         fix="pass a longer text")  # fmt: skip
    return pieces


def load_ids(name: str, path: str | None, *, most: int) -> torch.Tensor:
    """The first ``most`` token ids of a text file, or of the text that qpass ships where ``path`` is None. int64 [N].

    Raises:
        InputError: a file that cannot be read; no tokenizer.
    """
    if path is None:
        text = evaluation_text()
    else:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(most * _LONGEST_TOKEN)  # of a large file, no more than can be used
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"cannot read the text: {reason}", where=path, fix="pass a text file") from error
    return torch.tensor(load_tokenizer(name)(text, verbose=False).input_ids[:most], dtype=torch.int64)


def resolve(name: str) -> str:
    """The path or hub name behind a name. Raises InputError where it looks like a path and nothing is there."""
    if name == "demo":
        return str(model_path())
    path = Path(name)
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InputError("the model is a file", where=name, fix="pass the folder with its config.json")
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or name.endswith("/")
    if looks_like_path or not name:
        fix = "pass a folder with config.json and *.safetensors, a hub name, or the word demo"
        raise InputError("there is no such model folder", where=name or "MODEL", fix=fix)
    return name


def _cannot(what: str, name: str, error: BaseException) -> QPassError:
    reason = next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
    fix = "pass a folder with config.json and *.safetensors, a hub name that this machine can reach, or the word demo"
    return InputError(f"cannot {what}: {reason}", where=name, fix=fix)
