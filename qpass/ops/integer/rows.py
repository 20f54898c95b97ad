"""Rows in, rows between, rows out: embedding, sum, factor, rotary embedding, rows side by side, logits."""

from __future__ import annotations

from torch import Tensor

from qpass.numerics.integer import embedding, logits, rotary, rows
from qpass.ops.dialect import define


@define("integer_embedding(Tensor ids, Tensor codes, Tensor mantissa, Tensor exponent) -> (Tensor, Tensor)")
def integer_embedding(ids: Tensor, codes: Tensor, mantissa: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a table. ids: int64 [...]; codes: int8 or int16 [V, H]; mantissa, exponent: int32 [V]."""
    return embedding.embedding(ids, codes, mantissa, exponent)


@define("integer_add(Tensor a, Tensor ka, Tensor b, Tensor kb) -> (Tensor, Tensor)")
def integer_add(a: Tensor, ka: Tensor, b: Tensor, kb: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two rows, int32 [..., C] and [..., 1], at the coarser of the normalized exponents."""
    return rows.add(a, ka, b, kb)


@define("integer_concat(Tensor a, Tensor ka, Tensor b, Tensor kb) -> (Tensor, Tensor)")
def integer_concat(a: Tensor, ka: Tensor, b: Tensor, kb: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of two rows side by side, int32 [..., C], [..., D] to [..., C + D], at the coarser exponent."""
    return rows.concat(a, ka, b, kb)


@define("integer_scale(Tensor x, Tensor k, Tensor mantissa, Tensor shift, Tensor exponent) -> (Tensor, Tensor)")
def integer_scale(x: Tensor, k: Tensor, mantissa: Tensor, shift: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Rows int32 [..., C], [..., 1] times a dyadic vector, int32 [C] or [1], the same, [1]."""
    return rows.scale(x, k, mantissa, shift, exponent)


@define("integer_rotary(Tensor x, Tensor k, Tensor cos, Tensor sin, bool interleaved=False) -> (Tensor, Tensor)")
def integer_rotary(
    x: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of x · cos + rotate(x) · sin. x, k: int32 [..., D], [..., 1]; cos, sin: int16 Q14, broadcast to x."""
    return rotary.rotary(x, k, cos, sin, interleaved)


@define("integer_merge_heads(Tensor x, Tensor k) -> (Tensor, Tensor)")
def integer_merge_heads(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., H, D] with an exponent a head, [..., H, 1], to [..., H · D] with one, [..., 1]."""
    x, k = rows.align(x, k)
    return x.flatten(-2), k.flatten(-2)


@define("integer_logits(Tensor x, Tensor k) -> (Tensor, Tensor)")
def integer_logits(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rows int32 [..., V], [..., 1] with |x| <= 2^24, which float32 holds exactly and in order."""
    return logits.logits(x, k)
