"""What Inductor makes of a quantized decoder block on a GPU that is not here: how many kernels, and which."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("triton")

import triton
import triton.language as tl

import qpass
from qpass.formats import Format
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.quantize import QUANTIZE
from qpass.lowering.triton.interpret import Interpreter
from qpass.numerics import codec
from tests.lowering.cuda import fakegpu
from tests.lowering.cuda.generated import compiled, launches, loaded
from tests.tiny import RMSNorm

BF16 = torch.bfloat16
PAST = 7


@functools.cache
def block() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=64, tie_word_embeddings=False)  # fmt: skip
    return LlamaForCausalLM(config).eval().to(BF16)


def kernels(scheme: str, length: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What one block with ``scheme`` launches for one sequence of ``length`` tokens behind ``PAST``."""
    recipe = {"linears": {"lm_head.weight": "keep", "*": scheme}}
    program = qpass.trace(block(), recipe, target="cuda")["LOWERED"]
    sizes = {"input_ids": (1, length), "attention_mask": (1, PAST + length), "position_ids": (1, length), "keep": (1,)}
    inputs = [(sizes.get(node.name, (1, 2, PAST, 64)), node.meta["val"].dtype) for node in program.placeholders()]
    if length == 1:  # no dense dot is asked about here, and their templates take time
        monkeypatch.setitem(fakegpu.SETTINGS, "max_autotune_gemm", False)
    return launches(fakegpu.code_for(program, inputs))


def test_a_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven linears in four kernels, and between them one where rows are reduced: quantizing is part of it."""
    found = kernels("w8a8-int8", 1, monkeypatch)
    at = [place for place, name in enumerate(found) if name.startswith("eight_bit_kernel")]
    assert len(at) == 4
    # before q, k and v: embedding, norm, quantize; after down: residual and norm, and the head
    assert at[0] == 1 and found[0].startswith("triton_per") and len(found) - at[-1] - 1 <= 2
    # o's quantize, o; residual, norm and quantize, gate, up; SwiGLU and quantize, down
    tail = [name.split("_")[1] for name in found[at[1] - 1 : at[-1] + 1]]
    assert tail == ["per", "bit", "per", "bit", "per", "bit"]
    none_else(found)


def test_a_decode_step_with_a_cache_of_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over codes is our kernel, and the one that adds the ranges of keys; nothing unpacks a row before."""
    program = qpass.trace(block(), {"linears": {"*": "keep"}, "attention": "kv8"}, target="cuda")["LOWERED"]
    sizes = {"input_ids": (1, 1), "attention_mask": (1, PAST + 1), "position_ids": (1, 1), "keep": (1,)}
    inputs = [(sizes.get(node.name, (1, 2, PAST, 80)), node.meta["val"].dtype) for node in program.placeholders()]
    monkeypatch.setitem(fakegpu.SETTINGS, "max_autotune_gemm", False)
    found = launches(fakegpu.code_for(program, inputs))
    at = [place for place, name in enumerate(found) if name.startswith("kv_attention_kernel")]
    assert len(at) == 1 and found[at[0] + 1].startswith("kv_combine_kernel"), found


class Mlp(nn.Module):
    """The half of a decoder block behind its attention, and the next one's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.next = RMSNorm(256), RMSNorm(256)
        self.gate, self.up, self.down = nn.Linear(256, 512), nn.Linear(256, 512), nn.Linear(512, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return self.next(x + self.down(nn.functional.silu(self.gate(h)) * self.up(h)))


HALF = [
    ("w4a16-g128", "w4a16_kernel", "per our poi our per"),
    ("w4a8-int8", "w4a8_int8_kernel", "per our per our per"),
    ("w4a8-fp-m2", "w4a8_fp8_kernel", "per our per our per"),
    ("w8a8-fp8", "eight_bit_kernel", "per our per our per"),
]


@pytest.mark.parametrize(("scheme", "kernel", "expected"), HALF, ids=[case[0] for case in HALF])
def test_half_a_decode_step(scheme: str, kernel: str, expected: str) -> None:
    """Norm (and quantize), gate and up in one, SwiGLU (and quantize), down, residual and norm."""
    program = qpass.trace(mlp(), scheme, args=(torch.zeros(4, 256, dtype=BF16),), target="cuda")["LOWERED"]
    found = launches(fakegpu.code_of_bucket(program, tiles.FEW))  # rows stay symbolic
    assert ["our" if name.startswith(kernel) else name.split("_")[1] for name in found] == expected.split()
    none_else(found)


def test_many_rows_of_four_bits() -> None:
    """Each weight is written out once, then Inductor's FP8 dot with bias and what follows it."""
    program = qpass.trace(mlp(), "w4a8-fp-m2", args=(torch.zeros(4, 256, dtype=BF16),), target="cuda")["LOWERED"]
    found = launches(fakegpu.code_of_bucket(program, None))
    kinds = [name.split("_kernel")[0] if name.startswith("deq") else name.split("_")[1] for name in found]
    assert sorted(kinds) == sorted(["dequantize_fp8", "tem"] * 2 + ["per"] * 3)
    assert all("scaled_mm" in name for name in found if name.startswith("triton_tem"))
    none_else(found)


@functools.cache
def mlp() -> nn.Module:
    return Mlp().eval().to(BF16)


def none_else(found: list[str]) -> None:
    """Counters of split K are written in place, so that nothing is cleared or copied; no library is called."""
    assert not [name for name in found if name.startswith(("triton_poi_fused_copy", "triton_poi_fused_zeros"))]
    assert not [name for name in found if "torchao" in name or name.startswith("aten.")]


def test_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's template for int8 with what is pointwise behind it; no library call, nothing that only quantizes."""
    found = kernels("w8a8-int8", 100, monkeypatch)
    dots = [name for name in found if "int_mm" in name]
    assert len(dots) == 4 and all(name.startswith("triton_tem") for name in dots)
    assert all(name.startswith("triton_") for name in found)
    reductions = [name for name in found if "amax" in name and "softmax" not in name]
    assert len(reductions) == 4  # inputs of qkv, of o, of gate and up, of down
    # torch 2.11 does not see that rows of an embedding are read in their order, and leaves that one a loop
    looped = [name for name in reductions if not name.startswith("triton_per")]
    assert looped == (reductions[:1] if torch.__version__ < (2, 12) else [])


def test_tiles_are_tried_where_that_is_asked_for() -> None:
    """Inductor gets the candidates of the kernel; otherwise one tile, whatever the GPU."""
    model = nn.Linear(1024, 256, bias=False).to(BF16).eval()
    program = qpass.trace(model, "w4a16-g128", args=(torch.zeros(4, 1024, dtype=BF16),), target="cuda")["LOWERED"]
    for bucket in (tiles.FEW, tiles.DENSE):
        (plain,), (tuned,) = (re.findall(r"user_autotune\(\s*configs=(\[.*?\]),\n", fakegpu.code_of_bucket(
            program, bucket, mode=mode)) for mode in (None, "max-autotune-no-cudagraphs"))  # fmt: skip
        assert plain.count("num_warps") == 1 and 2 <= tuned.count("'BN'") == tuned.count("num_warps") <= 12


@triton.jit
def largest(a, b):
    return tl.where(a > b, a, b)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(256, 128), nn.Linear(128, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.relu(self.up(x)))


@pytest.mark.skipif(not hasattr(config, "epilogue_fusion_user_defined_triton_kernel"), reason="before torch 2.13")
def test_an_activation_is_in_our_kernel(tmp_path: Path) -> None:
    """Inductor writes it into the kernel's source; what that computes is checked. The sum is
    an operand of the second kernel."""
    model = Perceptron().eval().to(BF16)
    program = qpass.trace(model, "w4a16-g128", args=(torch.zeros(2, 3, 256, dtype=BF16),), target="cuda")["LOWERED"]
    code = fakegpu.code_of_bucket(program, tiles.DENSE)
    assert launches(code) == ["w4a16_kernel_0", "w4a16_kernel_1"]
    module, meta = loaded(code, "w4a16_kernel", tmp_path)
    module.triton_helpers = SimpleNamespace(maximum=Interpreter(largest)._kernel)
    given = {name: program.tensor(f"up.weight.{name}") for name in ("words", "group_meta", "counters")}
    words, bias, x = given["words"], program.tensor("up.bias").float(), torch.randn(40, 256).to(BF16).float()
    out, none = torch.full((40, 128), torch.nan), given["group_meta"]
    constants = {**meta["triton_meta"]["constants"], "BM": 16, "BN": 64, "ASM": False}
    Interpreter(module.w4a16_kernel)[(2 * 3, 1)](
        x, words, none, none, bias, none, none, none, none, out, torch.empty(1), given["counters"], 40, 128, 256, 256,
        128, 128, 128, **constants,
    )  # fmt: skip
    whole = torch.ops.qpass_cuda.w4a16_linear(
        x, words, none, None, bias, given["counters"], 128, 128, "k128-bf16", "bf16"
    )
    assert ((out - whole.relu()).abs() <= 2.0**-7 * whole.relu()).all()  # the interpreter cuts a bfloat16 off


def add_norm_quantize(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    total = x + residual
    h = total.float()
    h = weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)).to(BF16)
    return total, *codec.quantize_rows(h, Format.parse("int8:token:asym"))


def swiglu_quantize(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return QUANTIZE.call(torch.nn.functional.silu(gate) * up, "e4m3:token:sym")[:2]


LONG = [(add_norm_quantize, [(512, 4096), (512, 4096), (4096,)], 48), (swiglu_quantize, [(512, 14336)] * 2, 80)]


@pytest.mark.parametrize(("function", "shapes", "registers"), LONG, ids=["norm", "swiglu"])
def test_long_rows_are_read_once(function, shapes, registers: int, tmp_path: Path) -> None:
    """One kernel, the row in registers, 16 bytes at a time: as a kernel written for it would be."""
    module = make_fx(function)(*[torch.zeros(shape, dtype=BF16) for shape in shapes])
    code = fakegpu._code(module, [(shape, BF16) for shape in shapes], (9, 0))
    (name,) = launches(code)
    assert name.startswith("triton_per")
    made = compiled(code, name, tmp_path, warps=8)
    loads = [line for line in made.assembly.splitlines() if "ld.global" in line]
    assert loads and all(".v4.b32" in line for line in loads)
    if made.sass:
        assert made.stack == 0 and made.registers <= registers
