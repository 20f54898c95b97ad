"""What the GPU benchmark measures: shapes, formats, and for each a linear of ours beside what torch has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from qpass.formats import Scheme
from qpass.graph.program import Program
from qpass.lowering import Case
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kernels import kernels
from qpass.numerics import codec

SHAPES = {
    "8b qkv": (6144, 4096), "8b o": (4096, 4096), "8b gate_up": (28672, 4096), "8b down": (4096, 14336),
    "8b head": (128256, 4096), "70b/4 qkv": (2560, 8192), "70b/4 o": (8192, 2048), "70b/4 gate_up": (14336, 8192),
    "70b/4 down": (8192, 7168), "qwen3-8b gate_up": (24576, 4096), "qwen3-8b down": (4096, 12288),
    "qwen3-32b gate_up": (51200, 5120),
}  # fmt: skip
"""Outputs and inputs. The wide ones first where time is short: ``--shapes``."""
ROWS = (1, 4, 16, 64, 128, 512, 2048, 8192)
TINY = {"tiny": (48, 256)}
TINY_ROWS = (1, 17)


@dataclass(frozen=True)
class Form:
    """One format: its scheme, bits of a weight, and whether its dots run at the rate of eight bits."""

    scheme: str
    bits: float
    eight: bool
    limit: float
    """Largest relative error (Frobenius) against float64 of the same quantized operands."""


FORMS = {
    "w8a8-int8": Form("w8a8-int8", 8, True, 2.5e-3),
    "w8a8-fp8": Form("w8a8-fp8", 8, True, 5e-3),
    "w8a8-fp8-block": Form("w8a8-fp8-block", 8, True, 5e-3),
    "w4a16-g128": Form("w4a16-g128", 4.19, False, 2.5e-3),
    "w4a8-int8": Form("w4a8-int8", 4.19, True, 2.5e-3),
    "w4a8-fp-m2": Form("w4a8-fp-m2", 4.03, True, 5e-3),
}


class Linear:
    """One weight in one format, ``copies`` times over so that the cache does not hold it, and its inputs."""

    def __init__(self, form: Form, shape: tuple[int, int], rows: int, copies: int, device: str, seed: int) -> None:
        self.scheme = Scheme.parse(form.scheme)
        # the interpreter cuts a bfloat16 off where a GPU rounds it
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.case = Case(*shape, self.scheme, dtype)
        maker = torch.Generator(device).manual_seed(seed)
        capability = Capability.here()
        self.kernel = next(one for one in kernels(capability) if one.refuses(self.case) is None)
        self.x = torch.randn(rows, shape[1], generator=maker, device=device, dtype=torch.bfloat16)
        self.inputs: tuple[Tensor, ...] = (self.x.to(dtype),)
        if self.scheme.input is not None:
            self.inputs = codec.quantize_rows(self.x, self.scheme.input)
        self.weight = torch.randn(shape, generator=maker, device=device, dtype=torch.bfloat16)
        self.parts = self._quantized()
        first = self._packed()
        self.packed = [first, *({key: value.clone() for key, value in first.items()} for _ in range(copies - 1))]

    def _quantized(self) -> dict[str, Tensor]:
        fmt = self.scheme.weight
        found = codec.choose(self.weight, fmt)
        parts = {"scale": found.scale, "zero": found.zero, "outer": found.outer}
        codes = codec.quantize(self.weight, found, fmt)
        self.found = found
        return {"codes": codes, **{key: value for key, value in parts.items() if value is not None}}

    def _packed(self) -> dict[str, Tensor]:
        program = Program(fx.Graph(), self.parts, "LOWERED")
        made = self.kernel.prepare({key: key for key in self.parts}, program, self.case)
        packed = {key: one.fn(*(self.parts[name] for name in one.sources)) for key, one in made.items()}
        return packed | {key: self.parts[key] for key in self.kernel.parts}

    def call(self, copy: int = 0) -> Tensor:
        """The linear, with one of the copies of its weight."""
        found: Tensor = self.kernel.call(self.inputs, self.packed[copy], None, self.case)
        return found

    def error(self) -> float:
        """Relative error against float64 of the same quantized operands, on at most 64 rows and 512 outputs."""
        rows, outputs = slice(0, 64), slice(0, 512)
        fmt, inputs = self.scheme.weight, self.scheme.input
        w = codec.dequantize(self.parts["codes"], self.found, fmt, torch.float32)[outputs].double()
        x = self.x if inputs is None else codec.dequantize_rows(*self.inputs, inputs, torch.float32)
        exact = x[rows].double() @ w.T
        return float((self.call()[rows, outputs].double() - exact).norm() / exact.norm())

    def repeats(self) -> bool:
        """Whether two runs give the same bits."""
        return torch.equal(self.call().view(torch.uint8), self.call().view(torch.uint8))


def baselines(linear: Linear, copies: int) -> dict[str, Callable[[int], Any]]:
    """What torch has for the same shape, by name; each is called with the number of a copy."""
    x, (n, k) = linear.x, linear.weight.shape
    dense = [linear.weight.clone() for _ in range(copies)]
    found: dict[str, Callable[[int], Any]] = {"bf16": lambda copy: F.linear(x, dense[copy])}
    codes = [torch.randint(-127, 128, (n, k), dtype=torch.int8, device=x.device) for _ in range(copies)]
    if len(x) > 16:
        x8 = torch.randint(-127, 128, x.shape, dtype=torch.int8, device=x.device)
        found["_int_mm"] = lambda copy: torch._int_mm(x8, codes[copy].t())
    if Capability.here().fp8:
        fp8 = [weight.to(torch.float8_e4m3fn) for weight in dense]
        x_fp8, ones = x.to(torch.float8_e4m3fn), torch.ones(len(x), 1, device=x.device)
        unit = torch.ones(1, n, device=x.device)
        found["_scaled_mm"] = lambda copy: torch._scaled_mm(
            x_fp8, fp8[copy].t(), ones, unit, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    if linear.scheme.weight.bits == 4:
        nibbles = [(one[:, ::2].to(torch.uint8) << 4 | (one[:, 1::2].to(torch.uint8) & 15)) for one in codes]
        four = [torch._convert_weight_to_int4pack(one, 8) for one in nibbles]
        scales = torch.ones(k // 128, n, 2, device=x.device, dtype=torch.bfloat16)
        found["_weight_int4pack_mm"] = lambda copy: torch._weight_int4pack_mm(x, four[copy], 128, scales)
    return found
