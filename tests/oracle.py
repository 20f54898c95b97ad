"""Fake quantization by module hooks, written from the formulas and independent of qpass's passes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

GROUPS = {"w4a16-g16": 16, "w4a16-g32": 32, "w4a16-g128": 128}


def fake_quantized(model: nn.Module, recipe: str, keep: tuple[str, ...] = ()) -> nn.Module:
    """A copy of ``model`` in which every nn.Linear not in ``keep`` computes on quantized and dequantized operands."""
    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name in keep:
            continue
        if recipe in GROUPS:
            module.weight.data = _groups(module.weight.data, GROUPS[recipe])
        else:
            module.weight.data = _channels(module.weight.data)
        if recipe.startswith("w8a8"):
            rows = _rows_symmetric if recipe.endswith("sym") else _rows_asymmetric
            module.register_forward_pre_hook(lambda _, args, rows=rows: (rows(args[0]), *args[1:]))
    return model


def _channels(w: Tensor) -> Tensor:
    scale = w.float().abs().amax(1, keepdim=True) / 127
    return (torch.round(w.float() * (1 / scale)).clamp(-127, 127) * scale).to(w.dtype)


def _groups(w: Tensor, group: int) -> Tensor:
    return torch.cat([_group(part) for part in w.split(group, 1)], 1)


def _group(w: Tensor) -> Tensor:
    low, high = w.float().amin(1, keepdim=True).clamp(max=0), w.float().amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = torch.clamp(torch.round(-low / scale), 0, 15)
    scale = scale.to(torch.bfloat16).float()
    return ((torch.clamp(torch.round(w.float() * (1 / scale)) + zero, 0, 15) - zero) * scale).to(w.dtype)


def _rows_symmetric(x: Tensor) -> Tensor:
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (torch.round(x.float() * (1 / scale)).clamp(-127, 127) * scale).to(x.dtype)


def _rows_asymmetric(x: Tensor) -> Tensor:
    low, high = x.float().amin(-1, keepdim=True).clamp(max=0), x.float().amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)  # rows of zeros
    zero = torch.round(-low / scale)
    codes = torch.clamp(torch.round(x.float() * (1 / scale)) + zero, 0, 255)
    return ((codes - zero) * scale).to(x.dtype)
