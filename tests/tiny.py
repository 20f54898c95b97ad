"""Tiny models written out as model authors write them, and their programs. No download, well under a second each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.graph.program import Program
from qpass.graph.values import assign_names
from qpass.passes.raise_ops import raise_ops

H, HEADS, KV, D, FFN, VOCAB = 16, 4, 2, 4, 24, 32


class RMSNorm(nn.Module):
    def __init__(self, width: int, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.offset:
            return (h * (1.0 + self.weight.float())).type_as(x)
        return self.weight * h.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def repeat_kv(x: Tensor, n: int) -> Tensor:
    b, heads, s, d = x.shape
    return x[:, :, None, :, :].expand(b, heads, n, s, d).reshape(b, heads * n, s, d)


class Attention(nn.Module):
    def __init__(self, eager: bool, bias: bool = False, rotary: bool = True, kv: int = KV) -> None:
        super().__init__()
        self.eager, self.rotary, self.kv = eager, rotary, kv
        self.q_proj, self.o_proj = nn.Linear(H, H, bias=bias), nn.Linear(H, H, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(H, kv * D, bias=bias) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, HEADS, D).transpose(1, 2)
        k, v = (proj(x).view(b, t, self.kv, D).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        if self.rotary:
            q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
        if self.kv != HEADS:
            k, v = repeat_kv(k, HEADS // self.kv), repeat_kv(v, HEADS // self.kv)
        if self.eager:
            scores = torch.tanh(torch.matmul(q, k.transpose(2, 3)) * 0.5 / 50.0) * 50.0 + mask
            y = torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)
        return self.o_proj(y.transpose(1, 2).contiguous().reshape(b, t, H))


class GatedMLP(nn.Module):
    def __init__(self, gelu: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(H, FFN, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(FFN, H, bias=False)
        self.act_fn = nn.GELU(approximate="tanh") if gelu else nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ReluMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(H, FFN), nn.Linear(FFN, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Layer(nn.Module):
    """Style ``rms`` (SwiGLU, grouped heads), ``offset`` (soft cap, GeGLU, 1 + w) or ``layer`` (biases, ReLU)."""

    def __init__(self, style: str) -> None:
        super().__init__()
        plain = style == "layer"
        self.norm1, self.norm2 = (nn.LayerNorm(H) if plain else RMSNorm(H, style == "offset") for _ in range(2))
        self.attn = Attention(style == "offset", bias=plain, rotary=not plain, kv=HEADS if plain else KV)
        self.mlp = ReluMLP() if plain else GatedMLP(style == "offset")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self, style: str = "rms", layers: int = 2, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, H)
        self.layers = nn.ModuleList(Layer(style) for _ in range(layers))
        self.norm = nn.LayerNorm(H) if style == "layer" else RMSNorm(H, style == "offset")
        self.head = nn.Linear(H, VOCAB, bias=False)
        self.register_buffer("inv_freq", 1.0 / 100 ** (torch.arange(0, D, 2) / D))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        length = ids.shape[1]
        position = torch.arange(length, device=ids.device)
        angle = position[:, None].to(torch.float32) * self.inv_freq[None].to(torch.float32)
        angle = torch.cat((angle, angle), dim=-1)[None, None]
        causal = position[None, :] <= position[:, None]
        mask = torch.where(causal, 0.0, float("-inf")).to(x.dtype)[None, None]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.head(self.norm(x))


def export(module: nn.Module, *inputs: Any, dims: Any = None, **options: Any) -> Program:
    """The CAPTURED program of any module."""
    with torch.no_grad():
        exported = torch.export.export(module.eval(), inputs, dynamic_shapes=dims, strict=False)
        return from_export(exported.run_decompositions({}), prefix="", dims={}, call=None, **options)


def ids(batch: int = 2, length: int = 5) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) * 7 % VOCAB


@functools.cache
def _captured(style: str, layers: int, dtype: torch.dtype, tied: bool) -> Program:
    model = Decoder(style, layers, tied).to(dtype)
    # twice as slow to export; and torch 2.11 cannot tell min(4 seq, 8 seq), a stride of the repeated heads
    dynamic = layers == 2 and not tied and torch.__version__ >= (2, 12)
    dims = {"ids": {0: Dim("batch", min=1, max=64), 1: Dim("seq", min=2, max=64)}} if dynamic else None
    return export(model, ids(), dims=dims)


@functools.cache
def _normal(style: str, layers: int, dtype: torch.dtype, tied: bool) -> Program:
    return normalise(_captured(style, layers, dtype, tied))


@functools.cache
def _raised(style: str, layers: int, dtype: torch.dtype, tied: bool) -> Program:
    return raise_ops(_normal(style, layers, dtype, tied))


def captured(style: str = "rms", layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = False) -> Program:
    """The CAPTURED program of a decoder. Programs are never edited, so one is shared.

    With two layers, untied, it takes any batch and length; the others take ``ids()``.
    """
    return _captured(style, layers, dtype, tied)


def normal(style: str = "rms", layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = False) -> Program:
    """As ``captured``, normalised."""
    return _normal(style, layers, dtype, tied)


def raised(style: str = "rms", layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = False) -> Program:
    """As ``normal``, raised."""
    return _raised(style, layers, dtype, tied)


def traced(function: Callable[..., Any], *inputs: Tensor, symbolic: bool = False, **weights: Tensor) -> Program:
    """The CAPTURED program of ``function(*inputs, **weights)`` in milliseconds; the inputs are x, y, z, u, v."""
    mode = "symbolic" if symbolic else "fake"
    names = [*"xyzuv"[: len(inputs)], *weights]

    def call(*values: Tensor) -> Any:
        return function(*values[: len(inputs)], **dict(zip(weights, values[len(inputs) :])))

    values = [tensor.clone() for tensor in (*inputs, *weights.values())]
    with torch.no_grad():
        module = make_fx(call, pre_dispatch=True, tracing_mode=mode)(*values)
    graph, mapping, left = fx.Graph(), {}, iter(names)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            name = next(left)
            mapping[node] = graph.get_attr(name) if name in weights else graph.placeholder(name)
        else:
            mapping[node] = graph.node_copy(node, lambda arg: mapping[arg])
        mapping[node].meta = {"val": node.meta.get("val")}
    result = next(node for node in reversed(graph.nodes) if node.op == "output")
    result.args = (tuple(result.args[0]) if isinstance(result.args[0], list | tuple) else (result.args[0],),)
    assign_names(graph)
    return Program(graph, dict(weights), stage="CAPTURED")


class Function(nn.Module):
    """A module that calls a function of tensors, with weights as parameters."""

    def __init__(self, function: Callable[..., Any], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self.named_buffers()))
