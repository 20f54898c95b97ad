"""Tiny models written out as model authors write them, and their programs. No download, well under a second each."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from qpass.capture.normalise import normalise
from qpass.capture.program import from_export
from qpass.graph.program import Program

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
        for layer in self.layers:
            x = layer(x, angle.cos().to(x.dtype), angle.sin().to(x.dtype), mask)
        return self.head(self.norm(x))


def export(module: nn.Module, *inputs: Any, dims: Any = None, **options: Any) -> Program:
    """The CAPTURED program of any module."""
    with torch.no_grad():
        exported = torch.export.export(module.eval(), inputs, dynamic_shapes=dims, strict=False)
        return from_export(exported.run_decompositions({}), prefix="", dims={}, call=None, **options)


def ids(batch: int = 2, length: int = 5) -> Tensor:
    return torch.arange(batch * length).reshape(batch, length) * 7 % VOCAB


@functools.cache
def captured(style: str = "rms", layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = False) -> Program:
    """The CAPTURED program of a decoder with dynamic batch and length. Programs are never edited, so one is shared."""
    model = Decoder(style, layers, tied).to(dtype)
    return export(model, ids(), dims={"ids": {0: Dim("batch", min=1, max=64), 1: Dim("seq", min=2, max=64)}})


@functools.cache
def normal(style: str = "rms", layers: int = 2, dtype: torch.dtype = torch.float32, tied: bool = False) -> Program:
    """As ``captured``, normalised."""
    return normalise(captured(style, layers, dtype, tied))


class Function(nn.Module):
    """A module that calls a function of tensors, with weights as parameters."""

    def __init__(self, function: Any, **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self.named_buffers()))


def program_of(function: Any, *inputs: Tensor, dims: Any = None, **weights: Tensor) -> Program:
    """The NORMAL program of a function: ``inputs`` are its inputs, ``weights`` its parameters."""
    return normalise(export(Function(function, **weights), *inputs, dims=(dims,) if dims is not None else None))
