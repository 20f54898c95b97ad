"""qpass_cpu::attention against softmax in float64, and the choice between it and ATen's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import qpass
from qpass.lowering.cpu import build, kernels
from qpass.lowering.cpu.attention import ATTENTION

REASON = build.available()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(params=["avx512", "avx512_bf16", "amx"])
def isa(request):
    kernels.load()
    level = {name: number for number, name in kernels.ISA_LEVELS.items()}[request.param]
    try:
        before = torch.ops.qpass_cpu.set_isa(level)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    torch.ops.qpass_cpu.set_isa(before)


def oracle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, ...]:
    """The exact result, and the bound that the operator's page gives; rows that keep no key are 0."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 1), v.double().repeat_interleave(repeats, 1)
    scores, kept = q @ k.transpose(2, 3) * scale, torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    added = torch.zeros(()) if mask is None or mask.dtype is torch.bool else mask.double()
    if causal:
        kept = kept.tril()
    if mask is not None and mask.dtype is torch.bool:
        kept = kept & mask
    scores = (scores + added).masked_fill(~kept, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    terms = (q.abs() @ k.abs().transpose(2, 3) * scale + added.nan_to_num(neginf=0.0).abs()).amax(-1, keepdim=True)
    off = 2.0**-24 * (q.shape[-1] + 8) * terms
    spread = weights @ v.abs()
    return weights @ v, (2.0**-8 + 2 * off + 2.0**-24 * (k.shape[2] + 8)) * spread


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> None:
    scale = q.shape[-1] ** -0.5
    got = torch.ops.qpass_cpu.attention(q, k, v, mask, causal, scale)
    exact, error = oracle(q, k, v, mask, causal, scale)
    assert got.dtype is torch.bfloat16 and got.shape == exact.shape
    bound = error + 2.0**-8 * (exact.abs() + error) + 2.0**-133
    assert bool(((got.double() - exact).abs() <= bound).all())


def tensors(b: int, h: int, r: int, t: int, s: int, d: int, e: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (b, h, t, d), (b, h // r, s, d), (b, h // r, s, e or d)
    return tuple(torch.randn(shape).bfloat16() for shape in shapes)  # type: ignore[return-value]


SHAPES = [  # batch, heads, query heads of a key head, queries, keys, width
    (1, 4, 1, 1, 1, 64),
    (2, 8, 4, 1, 130, 64),
    (1, 6, 3, 7, 33, 40),
    (2, 4, 2, 37, 37, 32),
    (1, 2, 2, 5, 1100, 17),
    (1, 2, 1, 70, 530, 128),
    (3, 3, 1, 2, 16, 1),
]


@needs_kernels
@pytest.mark.parametrize("b,h,r,t,s,d", SHAPES)
def test_equals_the_softmax_in_float64(isa, b, h, r, t, s, d):
    q, k, v = tensors(b, h, r, t, s, d)
    check(q, k, v)
    check(q, k, v, causal=True)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in [(s,), (1, 1, t, s), (b, h, t, s), (b, 1, 1, s)]:
            check(q, k, v, torch.randn(shape).to(dtype))
    for shape in [(b, 1, t, s), (1, h, t, s), (t, s), (b, 1, t, 1)]:
        check(q, k, v, torch.rand(shape) < 0.4)


@needs_kernels
@pytest.mark.parametrize("queries", [1, 50])
def test_keys_that_no_row_sees_are_skipped(isa, queries):
    q, k, v = tensors(2, 4, 2, queries, 1300, 64)
    for first, last in [(0, 3), (600, 700), (511, 513), (1299, 1300), (5, 5)]:
        mask = torch.zeros(2, 1, queries, 1300, dtype=torch.bool)
        mask[:, :, :, first:last] = True
        mask[1, :, queries // 2 :] = False
        check(q, k, v, mask)
    band = (torch.arange(1300) - torch.arange(queries)[:, None] * 20).abs() < 9
    check(q, k, v, band)


@needs_kernels
def test_values_of_another_width_and_any_strides(isa):
    q, k, v = tensors(2, 4, 2, 9, 45, 64, 80)
    check(q, k, v)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    check(*turned, mask=torch.rand(2, 9, 45, 4).permute(0, 3, 1, 2))
    check(q.transpose(2, 3).contiguous().transpose(2, 3), k.expand(2, -1, -1, -1), v[..., ::2])
    assert torch.ops.qpass_cpu.attention(*turned, None, False, 0.1).transpose(1, 2).is_contiguous()


@needs_kernels
def test_a_key_head_that_threads_share_gives_the_same(isa):
    q, k, v = tensors(1, 8, 8, 200, 600, 64)
    mask = torch.rand(1, 1, 200, 600) < 0.5
    alone = torch.ops.qpass_cpu.attention(q, k, v, mask, False, 0.125)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    together = torch.ops.qpass_cpu.attention(q, k, v, mask, False, 0.125)
    torch.set_num_threads(threads)
    assert torch.equal(alone, together)


@needs_kernels
def test_values_that_are_not_finite(isa):
    q, k, v = tensors(1, 2, 1, 3, 40, 32)
    q[0, 0, 1, 3] = math.nan
    v[0, 1, 7, 2] = math.inf
    out = torch.ops.qpass_cpu.attention(q, k, v, None, False, 1.0)
    assert out[0, 0, 1].isnan().all() and out[0, 0, [0, 2]].isfinite().all()
    assert not out[0, 1, :, 2].isfinite().any() and out[0, 1, :, 3:].isfinite().all()
    # far below every float: the weights of the others are exactly 0
    mask = torch.full((40,), torch.finfo(torch.float32).min)
    mask[5] = 0.0
    out = torch.ops.qpass_cpu.attention(q[:, 1:], k[:, 1:], v[:, 1:], mask, False, 1.0)
    assert torch.equal(out[0, 0, 0, 3:], v[0, 1, 5, 3:])


@needs_kernels
def test_nothing_in_nothing_out(isa):
    for b, t, s in [(0, 3, 4), (2, 0, 4)]:
        q, k, v = tensors(b, 4, 2, t, s, 16)
        assert torch.ops.qpass_cpu.attention(q, k, v, None, False, 1.0).shape == (b, 4, t, 16)
    q, k, v = tensors(1, 4, 2, 3, 0, 16)
    assert torch.equal(torch.ops.qpass_cpu.attention(q, k, v, None, False, 1.0), torch.zeros(1, 4, 3, 16).bfloat16())


@needs_kernels
def test_opcheck():
    kernels.load()
    q, k, v = tensors(2, 4, 2, 3, 9, 32)
    mask = torch.ones(2, 1, 3, 9, dtype=torch.bool)
    torch.library.opcheck(torch.ops.qpass_cpu.attention.default, (q, k, v, mask, False, 0.2))
    torch.library.opcheck(torch.ops.qpass_cpu.attention.default, (q, k, v, None, True, 0.2))


@needs_kernels
@pytest.mark.parametrize(
    "change,message",
    [
        ({"q": torch.zeros(1, 4, 3, 16)}, "q must have dtype BFloat16"),
        ({"k": torch.zeros(1, 3, 5, 16).bfloat16()}, "4 query heads are no multiple of 3"),
        ({"v": torch.zeros(1, 2, 6, 16).bfloat16()}, r"v must have shape \[1, 2, 5, 16\]"),
        ({"q": torch.zeros(4, 3, 16).bfloat16()}, "q must have 4 dimensions"),
        ({"mask": torch.zeros(5, dtype=torch.int64)}, "mask must be bool, float32 or bfloat16"),
        ({"mask": torch.zeros(4)}, "expand"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    kernels.load()
    q, k, v = tensors(1, 4, 2, 3, 5, 16)
    a = {"q": q, "k": k, "v": v, "mask": None, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.qpass_cpu.attention(a["q"], a["k"], a["v"], a["mask"], False, 1.0)


def test_says_why_it_refuses(monkeypatch):
    q, k, v = tensors(1, 4, 2, 3, 5, 16)
    monkeypatch.setattr(build, "has_amx", lambda: False)
    assert ATTENTION.refuses(q.float(), k.float(), v.float(), None) == "cpu.attention takes bfloat16, not float32"
    assert "mask of float64" in ATTENTION.refuses(q, k, v, torch.zeros(5, dtype=torch.float64))
    monkeypatch.setattr(build, "cpu_flags", lambda: {"avx2"})
    assert "lacks avx512_vnni" in ATTENTION.refuses(q, k, v, None)
    monkeypatch.setattr(build, "has_amx", lambda: True)
    assert "AMX" in ATTENTION.refuses(q, k, v, None)


def test_amx_is_told_from_the_machine_and_the_environment(monkeypatch):
    monkeypatch.delenv("QPASS_CPU_ISA", raising=False)
    monkeypatch.setattr(build, "cpu_flags", lambda: {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"})
    assert build.has_amx()
    monkeypatch.setenv("QPASS_CPU_ISA", "avx512")
    assert not build.has_amx()
    monkeypatch.delenv("QPASS_CPU_ISA")
    monkeypatch.setattr(build, "cpu_flags", lambda: {"amx_tile", "avx512_bf16"})
    assert not build.has_amx()


class Attends(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).flatten(2)


@needs_kernels
@pytest.mark.skipif(build.has_amx(), reason="ATen's attention is taken on AMX")
def test_the_plan_names_it_and_the_graph_calls_it():
    x = torch.randn(2, 5, 32).bfloat16()
    trace = qpass.trace(Attends(torch.bfloat16).eval(), "w8a8-int8", (x,))
    assert "kernel cpu.attention, 1 of 1 attention: keys and values" in str(trace.plan)
    assert "qpass_cpu.attention(" in qpass.show(trace["LOWERED"])
    trace = qpass.trace(Attends(torch.float32).eval(), "w8a8-int8", (x.float(),))
    assert "attention compiled from its meaning: cpu.attention takes bfloat16, not float32" in str(trace.plan)
    assert "scaled_dot_product_attention(" in qpass.show(trace["LOWERED"])
    trace = qpass.trace(Attends(torch.bfloat16).eval(), "w8a8-int8", (x,), target="reference")
    assert "attention" not in str(trace.plan) and "scaled_dot_product_attention(" in qpass.show(trace["LOWERED"])


@needs_kernels
@pytest.mark.skipif(build.has_amx(), reason="ATen's attention is taken on AMX")
def test_a_padded_batch_and_a_cache_through_a_whole_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    compiled, reference = (qpass.compile(model, "w8a16", target=target) for target in ("cpu", "reference"))
    ids, mask = torch.randint(0, 128, (3, 40)), torch.ones(3, 40, dtype=torch.int64)
    mask[0, :7], mask[2, :39] = 0, 0
    past: list[object] = [None, None]
    for tokens in (ids, ids[:, :1]):  # a prompt with padding on the left, then one token after it
        outs = [
            m(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)
            for m, cache in zip((compiled, reference), past)
        ]
        past, real = [out.past_key_values for out in outs], mask[:, -tokens.shape[1] :].bool()
        got, want = (out.logits[real].float() for out in outs)
        assert (got - want).norm() / want.norm() < 2.0**-6  # 2^-9 for each of some roundings a layer
        assert bool(outs[0].logits.isfinite().all())
        mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.int64)), 1)
