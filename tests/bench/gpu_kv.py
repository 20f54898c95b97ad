"""What the GPU benchmark measures of a cache of codes: our attention over it beside ATen's over one in bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qpass import ops
from qpass.formats import Format
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kv import attention
from qpass.lowering.inductor.buckets import our_choices
from qpass.numerics import kv_rows

FORMATS = ("int8:token:asym", "e4m3:token:sym")
FULL = ((1, 1, 4096), (1, 1, 32768), (16, 1, 4096), (1, 512, 512))
"""Sequences, new tokens, keys."""
TINY = ((2, 1, 20),)
LIMIT = 2.0**-6
"""Of the error beside Σ P |v|: weights and results are rounded to bfloat16, which the interpreter cuts off."""


@dataclass(frozen=True)
class Case:
    """One attention: its arguments, the same keys and values in the dtype of the queries, and bytes of the cache."""

    name: str
    args: tuple[Any, ...]
    plain: tuple[Tensor, Tensor]
    bytes: int

    def ours(self) -> Tensor:
        return attention(Capability.here() if self.args[0].is_cuda else Capability(9, 0)).call(*self.args)  # type: ignore[no-any-return]

    def aten(self) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            self.args[0], *self.plain, is_causal=self.args[8], enable_gqa=True
        )

    def error(self) -> float:
        """The greatest, beside the same sum of sizes, against float64 of the values that the codes mean."""
        q, (k, v) = self.args[0].double(), (part.double() for part in self.plain)
        want, size = (ops.attention(q, k, part, None, self.args[8]) for part in (v, v.abs()))
        return float(((self.ours().double() - want).abs() / size.amax(-1, keepdim=True)).max())

    def repeats(self) -> bool:
        return torch.equal(self.ours(), self.ours())


def cases(device: str) -> Iterator[Case]:
    """Heads of Llama-3-8B on a GPU, else tiny ones."""
    heads, shared, width = (32, 8, 128) if device == "cuda" else (4, 2, 32)
    for batch, tokens, keys in FULL if device == "cuda" else TINY:
        draw = functools.partial(torch.randn, device=device, dtype=torch.bfloat16)
        q = draw(batch, heads, tokens, width)
        for form in FORMATS:
            fmt = Format.parse(form)
            k, v = (kv_rows.pack(draw(batch, shared, keys, width), fmt) for _ in range(2))
            plain = tuple(kv_rows.unpack(rows, fmt, width, torch.bfloat16) for rows in (k, v))
            args = (q, k, v, None, form, form, width, width, tokens > 1, None, 0.0, False)
            yield Case(f"{form}, {batch} x {tokens} x {keys}", args, plain, k.nbytes + v.nbytes)  # type: ignore[arg-type]


def checked(case: Case) -> dict[str, Any]:
    """The record of a case; raises if its result is off or changes from run to run."""
    record = {"name": f"kv {case.name}", "kernel": "cuda.kv_attention", "error": case.error(), "equal": case.repeats()}
    print(record)
    if record["error"] > LIMIT or not record["equal"]:
        raise SystemExit(f"{record['name']}: {record}")
    return record


def compiled(case: Case) -> dict[str, Any]:
    """Both as torch.compile makes them, by name."""
    rows = case.args[0].shape[1] // case.args[1].shape[1] * case.args[0].shape[2]
    with our_choices(), tiles.compiling_for(tiles.bucket_of(rows)):
        ours = torch.compile(case.ours, fullgraph=True, dynamic=False)
        ours()
    return {"ours": lambda copy: ours(), "bf16": lambda copy: case.aten()}
