"""Sites of the tiny decoders, written by hand: what the analysis should find, and some that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpass.sites.site import Axis, Powers, Site, Smooth
from tests.tiny import FFN, HEADS, KV, D, H


def powers(index: Tensor, power: float) -> Powers:
    index = index[None]
    return Powers(index, torch.where(index >= 0, power, 0.0).double())


def axis(param: str, dim: int, index: Tensor, power: float, role: str, node: str, **more) -> Axis:
    return Axis(param, (dim,), powers(index, power), role, node, **more)


def columns(linear: str, index: Tensor, reads: str, power: float = 1.0, **more) -> Axis:
    return axis(f"{linear}.weight", 1, index, power, "column", linear, reads=(reads,), **more)


def rows(linear: str, index: Tensor, bias: bool = False, power: float = -1.0) -> list[Axis]:
    name = f"{linear}.bias" if bias else None
    found = [axis(f"{linear}.weight", 0, index, power, "row", linear, bias=name)]
    return found + ([axis(name, 0, index, power, "affine", linear)] if name else [])


def norm_to(layer: int, norm: str, linears: Sequence[str], style: str = "rms") -> Site:
    """A norm and what reads it. ``offset`` style: (1 + w)."""
    index, name = torch.arange(H), f"layers.{layer}.{norm}"
    bias = f"{name}.bias" if style == "layer" else None
    offset = 1.0 if style == "offset" else 0.0
    axes = [axis(f"{name}.weight", 0, index, -1.0, "affine", name, bias=bias, offset=offset)]
    axes += [axis(bias, 0, index, -1.0, "affine", name)] if bias else []
    axes += [columns(f"layers.{layer}.{linear}", index, name) for linear in linears]
    needs = [*([] if bias else [name]), *(f"layers.{layer}.{linear}" for linear in linears if style != "layer")]
    return Site(f"{name} -> {', '.join(linears)}", "linear-norm", H, tuple(axes), unshiftable=None,
                missing_bias=tuple(needs))  # fmt: skip


def qkv(layer: int = 0, style: str = "rms") -> Site:
    return norm_to(layer, "norm1", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), style)


def mlp_in(layer: int = 0, style: str = "rms") -> Site:
    linears = ("mlp.fc1",) if style == "layer" else ("mlp.gate_proj", "mlp.up_proj")
    return norm_to(layer, "norm2", linears, style)


def v_to_o(layer: int = 0, style: str = "rms") -> Site:
    """One factor a channel of a key/value head; the query heads of its group share it."""
    bias = style == "layer"
    kv = HEADS if bias else KV
    base, at = f"layers.{layer}.attn", torch.arange(kv * D)
    wide = at.view(kv, 1, D).expand(kv, HEADS // kv, D).reshape(-1)
    axes = [*rows(f"{base}.v_proj", at, bias), columns(f"{base}.o_proj", wide, f"{base}/view_4")]
    return Site(f"{base}.v_proj -> o_proj", "serial linear-linear", kv * D, tuple(axes), unshiftable=None)


def q_with_k(layer: int = 0, tie: str = "half") -> Site:
    """Queries and keys; ``half``: channel i with i + D/2, as rotary needs; ``adjacent`` and ``none`` are wrong."""
    base, channel = f"layers.{layer}.attn", torch.arange(D)
    tied = {"half": channel % (D // 2), "adjacent": channel // 2, "none": channel}[tie]
    width = D if tie == "none" else D // 2
    k = (torch.arange(KV)[:, None] * width + tied).reshape(-1)
    q = k.view(KV, 1, D).expand(KV, HEADS // KV, D).reshape(-1)
    axes = [*rows(f"{base}.q_proj", q), *rows(f"{base}.k_proj", k, power=1.0)]
    return Site(f"{base}.q_proj // k_proj ({tie})", "parallel linear-linear", KV * width, tuple(axes),
                unshiftable="scores are a product of both")  # fmt: skip


def up_to_down(layer: int = 0, producer: str = "up_proj") -> Site:
    """Legal for up_proj; gate_proj goes through the activation and is not."""
    base, index = f"layers.{layer}.mlp", torch.arange(FFN)
    axes = [*rows(f"{base}.{producer}", index), columns(f"{base}.down_proj", index, f"{base}/mul")]
    return Site(f"{base}.{producer} -> down_proj", "serial linear-linear", FFN, tuple(axes),
                unshiftable="a product lies between")  # fmt: skip


def fc1_to_fc2(layer: int = 0) -> Site:
    base, index = f"layers.{layer}.mlp", torch.arange(FFN)
    axes = [*rows(f"{base}.fc1", index, bias=True), columns(f"{base}.fc2", index, f"{base}/relu")]
    return Site(f"{base}.fc1 -> fc2", "serial linear-linear", FFN, tuple(axes), unshiftable="relu lies between")


def gate_with_up(layer: int = 0) -> Site:
    """FSBR: the gate's rows times s, up's divided; the activation divides its argument again."""
    base, index = f"layers.{layer}.mlp", torch.arange(FFN)
    axes = [*rows(f"{base}.gate_proj", index, power=1.0), *rows(f"{base}.up_proj", index)]
    return Site(f"{base}.gate_proj // up_proj", "gated activation", FFN, tuple(axes),
                smooths=(Smooth(f"{base}/mul", powers(index, -1.0)),), unshiftable="an activation")  # fmt: skip
