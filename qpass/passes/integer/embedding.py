"""embedding(w, ids) -> rows of a table of codes with one dyadic scale an id."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from qpass import ops
from qpass.numerics.integer.dyadic import fit
from qpass.passes.integer.state import Row, State, name_of


def embedding(state: State, node: fx.Node) -> Row:
    """The rule of aten.embedding."""
    name, bits = name_of(node.args[0], node), state.options.embedding
    ids = state.plain(node.args[1], node)
    count, width = state.program.like(name).shape
    parts = [("table", (count, width), torch.int8 if bits == 8 else torch.int16),
             ("table_mantissa", (count,), torch.int32), ("table_exponent", (count,), torch.int32)]  # fmt: skip
    table = state.derive(name, parts, [name], partial(_table, bits=bits), f"int{bits} a row")
    return state.rows(ops.integer_embedding, ids, *table, like=node)


def _table(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    most = (1 << (bits - 1)) - 1
    m, k = fit(weight.double().abs().amax(1) / most)
    step = (m.clamp(min=1) * torch.exp2(-k.double()))[:, None]
    codes = torch.round(weight.double() / step).clamp(-most, most)
    return codes.to(torch.int8 if bits == 8 else torch.int16), m.to(torch.int32), k.to(torch.int32)


RULES = {torch.ops.aten.embedding.default: embedding}
