"""Calibration data: batches as the program's flat inputs, from the user's own, from texts, or random tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from qpass.errors import InputError
from qpass.graph.program import Program
from qpass.observe.run import numbered


def feed(program: Program, batches: Iterable[Any], most: int) -> tuple[list[Sequence[Any]], bool]:
    """The flat inputs of the first ``most`` batches, and whether there were more. An endless iterable is fine.

    Raises:
        InputError: no batch, or one that does not fit, with its number from 0.
    """
    iterator: Iterator[Any] = iter(batches)
    found = list(numbered(program, islice(iterator, most)))
    return found, next(iterator, None) is not None


def from_texts(
    texts: str | Iterable[str], tokenizer: Callable[..., Any], *, length: int = 2048, batch: int = 1,
    batches: int | None = None, seed: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """Batches of token ids [batch, length] from texts, joined by blank lines and cut into windows.

    Args:
        tokenizer: called with a text, gives a mapping with ``input_ids``.
        batches: how many; all whole ones if None.
        seed: windows at random places, drawn with it, as papers do; None takes them one after another.

    Raises:
        InputError: fewer tokens than are asked for.
    """
    joined = texts if isinstance(texts, str) else "\n\n".join(texts)
    ids = torch.as_tensor(tokenizer(joined)["input_ids"]).reshape(-1)
    size = batch * length
    count = len(ids) // size if batches is None else batches
    if count < 1 or len(ids) < (size * count if seed is None else length + 1):
        need = f"{max(count, 1)} batches of {batch} x {length} need {max(count, 1) * size}"
        raise InputError(f"the texts have {len(ids)} tokens, {need}", where="texts",
                         fix="pass more text, or a shorter length")  # fmt: skip
    if seed is None:
        return list(ids[: size * count].view(count, batch, length))
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(ids) - length, (count, batch), generator=draw)
    return [torch.stack([ids[start : start + length] for start in row.tolist()]) for row in starts]


def random_tokens(rows: int, *, length: int = 2048, batch: int = 1, batches: int = 32, seed: int = 0) -> list[Tensor]:
    """Batches [batch, length] of token ids drawn uniformly from 0 to ``rows`` - 1: for models without any data."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, rows, (batch, length), generator=draw) for _ in range(batches)]
