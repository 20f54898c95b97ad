"""The key-value cache as rows of codes: into rows, out of them, and attention over them."""

from __future__ import annotations

import torch
from torch import Tensor

from qpass.formats import Format
from qpass.numerics import kv_rows as rows
from qpass.ops.attention import attention, eager_attention
from qpass.ops.dialect import define


@define("kv_rows(Tensor x, str format) -> Tensor")
def kv_rows(x: Tensor, format: str) -> Tensor:
    """Rows of codes, int8 [B, H, T, W], of keys or values x [B, H, T, D]; ``qpass.numerics.kv_rows`` has their bytes.

    Args:
        x: any float dtype; keys after rotary embedding.
        format: of an input, a scale a token or a group, for example ``int8:token:asym``.
    """
    return rows.pack(x, Format.parse(format))


@define("kv_unpack(Tensor rows, str format, int width, ScalarType dtype) -> Tensor")
def kv_unpack(rows: Tensor, format: str, width: int, dtype: torch.dtype) -> Tensor:
    """The values [B, H, S, D] of ``dtype`` that rows [B, H, S, W] hold; D is ``width``.

    ``kv_unpack(kv_rows(x))`` is ``fake_quantize(x)`` bit for bit.
    """
    return _unpack(rows, format, width, dtype)


@define(
    "kv_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, str k_format, str v_format, int k_width, int v_width,"
    " bool causal=False, float? scale=None, float softcap=0.0, bool eager=False) -> Tensor"
)
def kv_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, k_format: str, v_format: str, k_width: int, v_width: int,
    causal: bool = False, scale: float | None = None, softcap: float = 0.0, eager: bool = False,
) -> Tensor:  # fmt: skip
    """``attention``, or with ``eager`` ``eager_attention``, of keys and values that are rows of codes.

    Args:
        q: [B, H_q, T, D], any float dtype; H_q a multiple of H_kv.
        k, v: int8 [B, H_kv, S, W], what ``kv_rows`` gives in ``k_format`` and ``v_format``.
        mask, causal, scale: as in ``attention``; with ``eager`` no causal, and a scale.
        k_width, v_width: D of keys and of values, which rows do not say.
        softcap: only with ``eager``; 0 for none.
    """
    keys, values = _unpack(k, k_format, k_width, q.dtype), _unpack(v, v_format, v_width, q.dtype)
    if eager:
        factor = k_width**-0.5 if scale is None else scale
        return eager_attention(q, keys, values, mask, factor, softcap)  # type: ignore[no-any-return]
    return attention(q, keys, values, mask, causal, scale)  # type: ignore[no-any-return]


def _unpack(held: Tensor, format: str, width: int, dtype: torch.dtype) -> Tensor:
    return rows.unpack(held, Format.parse(format), width, dtype)
