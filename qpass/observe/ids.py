"""Ids of a batch that the model's tables have no row for, found before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qpass.errors import InputError
from qpass.graph.program import Program

aten = torch.ops.aten
_SAME = (aten.view.default, aten.reshape.default, aten._to_copy.default, aten.clone.default, aten.unsqueeze.default,
         aten.squeeze.dim, aten.transpose.int, aten.detach.default)  # fmt: skip
"""Ops that keep every element: what is wrong with their result is wrong with their input."""


@dataclass(frozen=True)
class Table:
    """A table that elements of an input are looked up in.

    Attributes:
        place: of the input among the program's flat ones.
        input: its name.
        rows: of the table: for token ids the size of the vocabulary.
        weight: the table's name.
    """

    place: int
    input: str
    rows: int
    weight: str


def tables(program: Program) -> list[Table]:
    """The smallest table of each input whose elements are looked up as they are."""
    places = {node: place for place, node in enumerate(program.placeholders())}
    found: dict[fx.Node, Table] = {}
    for node in program.nodes():
        if node.target is not aten.embedding.default:
            continue
        weight, source = node.args[:2]
        while isinstance(source, fx.Node) and source.target in _SAME:
            source = source.args[0]
        if not isinstance(source, fx.Node) or source not in places or not isinstance(weight, fx.Node):
            continue
        rows = weight.meta["val"].shape[0]
        if isinstance(rows, int) and (source not in found or rows < found[source].rows):
            name = str(source.meta.get("name", source.name))
            found[source] = Table(places[source], name, rows, str(weight.meta.get("name", weight.name)))
    return list(found.values())


def check_ids(looked_up: Sequence[Table], flat: Sequence[Any]) -> None:
    """Raise InputError, with the first such id and the table's size, for an id below 0 or beyond its table."""
    for table in looked_up:
        ids = flat[table.place]
        if not isinstance(ids, Tensor) or not ids.numel():
            continue
        wrong = ids[(ids < 0) | (ids >= table.rows)]
        if wrong.numel():
            what = (f"`{table.input}` holds the id {int(wrong[0])}, and the vocabulary has {table.rows}, "
                    f"0 to {table.rows - 1} (the rows of {table.weight})")  # fmt: skip
            raise InputError(what, fix="pass ids of this model's own tokenizer")
