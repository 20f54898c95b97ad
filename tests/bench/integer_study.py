"""Integer programs with chosen operators in float, to see what each integer operator costs. For study only.

Such a program is not integer-only, and ``qpass.verify_integer_only`` refuses it: what is put in is named as the float
op that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qpass import ops
from qpass.graph.program import Program, copy_graph
from qpass.numerics.integer.cache import unpack

LOG2E = 1.4426950408889634
Rows = tuple[Tensor, Tensor]


def real(x: Tensor, k: Tensor) -> Tensor:
    """The values of rows, float64."""
    return x.double() * torch.exp2(-k.double())


def rows_of(values: Tensor) -> Rows:
    """Rows whose largest |x| is near 2^28."""
    top = values.abs().amax(-1, keepdim=True).clamp(min=2.0**-90)
    k = 28 - torch.floor(torch.log2(top))
    return torch.round(values * torch.exp2(k)).to(torch.int32), k.to(torch.int32)


def _dyadic(mantissa: Tensor, shift: Tensor, exponent: Tensor) -> Tensor:
    return mantissa.double() * torch.exp2(-(exponent + shift).double())


def _rms_norm(eps: float) -> Callable[..., Rows]:
    def rms_norm(x: Tensor, k: Tensor, mantissa: Tensor, shift: Tensor, exponent: Tensor, *_: Any) -> Rows:
        values = real(x, k)
        values = values / (values.square().mean(-1, keepdim=True) + eps).sqrt()
        return rows_of(values if mantissa is None else values * _dyadic(mantissa, shift, exponent))

    return rms_norm


def softmax(
    q: Tensor, m: Tensor, k: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, causal: bool, table: Tensor,
    scale_mantissa: int, scale_exponent: int, bits: int, clip: int, mode: str,
) -> Rows:  # fmt: skip
    """Attention of the same codes, in float from the scores on."""
    del table, bits, clip
    scale = scale_mantissa * 2.0**-scale_exponent / (1.0 if mode == "literal" else LOG2E)
    group = q.shape[1] // keys.shape[1]
    read = [_decoded(cache).repeat_interleave(group, 1) for cache in (keys, values)]
    scores = real(q * m, k) @ read[0].transpose(-1, -2) * scale
    mask = torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool) if keep is None else keep
    mask = mask & torch.ones(q.shape[2], keys.shape[2], dtype=torch.bool).tril() if causal else mask
    p = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    return rows_of(p @ read[1])


def _decoded(cache: Tensor) -> Tensor:
    codes, m, k = unpack(cache)
    return real(codes * m, k)


def silu(
    x: Tensor, k: Tensor, up: Tensor, k_up: Tensor, kind: str, mantissa: Tensor, shift: Tensor, exponent: Tensor,
    table: Tensor, mode: str,
) -> Rows:  # fmt: skip
    """SwiGLU of the rows as they are."""
    assert kind == "silu"
    factor = 1 / mantissa.double() if mode == "literal" else _dyadic(mantissa, shift, exponent) / LOG2E
    gate = real(x, k)
    return rows_of(F.sigmoid(gate * factor) * gate * real(up, k_up))


OPERATORS = {"softmax": ops.integer_attention, "SwiGLU": ops.integer_gated, "norm": ops.integer_rms_norm}


def in_float(program: Program, names: Iterable[str], eps: float) -> Program:
    """``program``, at stage INTEGER, with those of ``OPERATORS`` in float. eps: of its norms."""
    replaced = {"softmax": softmax, "SwiGLU": silu, "norm": _rms_norm(eps)}
    targets = {OPERATORS[name]: replaced[name] for name in names}
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        node.target = targets.get(node.target, node.target)
    return program.with_graph(graph)
