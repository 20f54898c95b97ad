"""The CUDA target without a GPU: what it plans, what it refuses and why, and its program in the interpreter."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

import qpass
from qpass import pipeline
from qpass.errors import InputError, UnsupportedError
from qpass.formats import Format, Scheme
from qpass.lowering import Case
from qpass.lowering.cuda import candidates, tiles
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.cuda.kernels import compiles_bf16, kernels
from qpass.lowering.cuda.quantize import QUANTIZE
from qpass.lowering.inductor import modes
from qpass.lowering.inductor.buckets import rows_of, sources
from qpass.lowering.triton import register_order
from qpass.numerics import codec

SM90, SM80 = Capability(9, 0), Capability(8, 0)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 96), nn.SiLU(), nn.Linear(96, 40)).eval()


def case(scheme: str, shape: tuple[int, int] = (256, 256)) -> Case:
    return Case(*shape, Scheme.parse(scheme), torch.bfloat16)


def choice(scheme: str, target: str) -> tuple[str, list[str]]:
    kernel, refusals = pipeline.load_target(target).pick(case(scheme))
    return kernel.name, refusals


PICKS = {
    "w8a8-int8": "cuda.int8_linear", "w8a8-int8-sym": "cuda.int8_linear", "w4a16-g32": "cuda.w4a16_linear",
    "w4a16-g128": "cuda.w4a16_linear", "w4a8-int8": "cuda.w4a8_int8_linear", "w4a8": "cuda.w4a8_int8_linear",
}  # fmt: skip
FP8_PICKS = {
    "w8a8-fp8": "cuda.fp8_linear", "w8a8-fp8-block": "cuda.fp8_block_linear", "w4a8-fp-m1": "cuda.w4a8_fp8_linear",
    "w4a8-fp-m2": "cuda.w4a8_fp8_linear", "w4a8-int-fp": "cuda.w4a8_fp8_linear",
}  # fmt: skip


@pytest.mark.parametrize(("scheme", "name"), [*PICKS.items(), *FP8_PICKS.items()])
def test_what_sm_90_gets(scheme: str, name: str) -> None:
    assert choice(scheme, "cuda:sm_90") == (name, [])


@pytest.mark.parametrize(("scheme", "name"), PICKS.items())
def test_what_sm_80_gets(scheme: str, name: str) -> None:
    assert choice(scheme, "cuda:80") == (name, [])


@pytest.mark.parametrize(("scheme", "name"), FP8_PICKS.items())
def test_without_fp8_the_alternative_is_named(scheme: str, name: str) -> None:
    found, refusals = choice(scheme, "cuda:sm_80")
    assert found == "reference.dequantize"
    assert refusals == [f"{name}: sm_80 has no FP8 dot: that begins with sm_89"]


@pytest.mark.parametrize("scheme", PICKS)
def test_a_gpu_whose_registers_are_not_checked_is_refused(scheme: str) -> None:
    found, refusals = choice(scheme, "cuda:sm_100")
    assert found == "reference.dequantize"
    assert refusals[0].endswith("its order of registers is checked for sm_80, sm_86, sm_89, sm_90, not for sm_100")


REFUSED = [
    ("int4:g48:asym", "it takes channels, groups of 32, 64 and multiples of 128, not group 48"),
    ("e2m1:g256:sym:e4m3 x e4m3:token:sym", "it takes no scales of e4m3"),
    ("int4:g128:sym:m2 x int8:token:asym", "it takes real scales, not m2"),
    ("int4:g128:full:f16 x e4m3:token:sym", "it takes codes of a sign and three bits"),
    ("int8:g128:sym x int8:token:asym", "it takes int8:channel:sym weights"),
    ("e4m3:tensor:sym x e4m3:token:sym", "it takes e4m3:channel:sym weights"),
]


@pytest.mark.parametrize(("scheme", "reason"), REFUSED)
def test_formats_that_no_kernel_takes(scheme: str, reason: str) -> None:
    found, refusals = choice(scheme, "cuda:sm_90")
    assert found == "reference.dequantize" and any(reason in refusal for refusal in refusals), refusals


def test_too_many_inputs_for_int32() -> None:
    kernel = kernels(SM90)[0]
    assert kernel.refuses(case("w8a8-int8", (16, 65793))) is None
    assert kernel.refuses(case("w8a8-int8", (16, 65794))) == "65794 inputs could overflow int32"


@pytest.mark.parametrize(("scheme", "name"), [*PICKS.items(), *FP8_PICKS.items()])
def test_what_gfx942_gets(scheme: str, name: str) -> None:
    found, refusals = choice(scheme, "rocm")
    assert (found, refusals) == choice(scheme, "cuda:gfx942")
    if scheme.startswith("w4a16") and not compiles_bf16(Capability.parse("gfx942")):
        assert found == "reference.dequantize" and "does not compile its kernel for gfx942" in refusals[0]
    elif scheme in PICKS:
        assert (found, refusals) == (name, [])
    else:
        assert found == "reference.dequantize"
        assert refusals == [f"{name}: gfx942's FP8 is E4M3FNUZ, whose bytes mean other values than E4M3's"]


@pytest.mark.parametrize("scheme", PICKS)
def test_another_amd_processor_is_refused(scheme: str) -> None:
    found, refusals = choice(scheme, "rocm:gfx90a")
    assert found == "reference.dequantize"
    assert refusals[0].startswith(f"{PICKS[scheme]}: ")
    assert "it is compiled and checked for gfx942, not for gfx90a" in refusals[0] or "Triton 3.6" in refusals[0]


def test_the_plan_for_rocm() -> None:
    text = str(qpass.plan(model(), "w8a8-int8", args=(torch.zeros(2, 256),), target="rocm"))
    assert "on target cuda:gfx942" in text and "cuda.int8_linear" in text


def test_without_triton_every_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, refusals = choice("w4a16-g128", "cuda:sm_90")
    assert found == "reference.dequantize"
    assert refusals == ["cuda.w4a16_linear: it needs Triton, which is not installed"]


def test_an_unknown_triton_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpass.lowering.cuda.kernels.CHECKED_TRITON", ("0.",))
    assert choice("w4a16-g128", "cuda:sm_90") == ("cuda.w4a16_linear", [])
    assert register_order.differs("sm_90") is None
    monkeypatch.setattr(register_order, "properties", lambda built: SimpleNamespace(words=(16, 0)))
    found = register_order.differs.__wrapped__("sm_90")
    assert found is not None and "does not hold words as they are packed (0 of 16 straight from a load)" in found
    monkeypatch.setattr(register_order, "differs", lambda target: found)
    name, refusals = choice("w4a8-fp-m2", "cuda:sm_90")
    assert name == "reference.dequantize" and refusals == [f"cuda.w4a8_fp8_linear: {found}"]


def test_the_plan_names_each_linears_kernel() -> None:
    text = str(qpass.plan(model(), "w4a16-g32", args=(torch.zeros(2, 256),), target="cuda"))
    assert "plan: recipe w4a16-g32 on target cuda" in text
    assert text.count("cuda.w4a16_linear") == 3  # two linears, and what the kernel is


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_compile_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_model", lambda *args, **kwargs: pytest.fail("captured"))
    with pytest.raises(UnsupportedError, match=r"no GPU is here to compile for sm_90.*qpass\.plan.*work without one"):
        qpass.compile(model(), "w4a16-g32", args=(torch.zeros(2, 256),), target="cuda")


@pytest.mark.parametrize(("target", "text"), [("cuda:h100", "'h100' is not a compute capability.*sm_90"),
                                              ("cpu:avx2", "target cpu takes no 'avx2'"),
                                              ("gpu", "unknown target 'gpu'.*cuda")])  # fmt: skip
def test_targets_that_do_not_exist(target: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        pipeline.load_target(target)


SCHEMES = ("w8a8-int8", "w8a8-int8-sym", "w4a16-g32", "w4a8", "w8a8-fp8", "int4:channel:sym x int8:token:sym",
           "e2m1:g32:sym:m2 x e4m3:token:sym", "e2m1:g64:sym:f16 x e4m3:token:sym")  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_lowered_program_computes_what_the_reference_does(scheme: str) -> None:
    """From a model to a LOWERED program, packed weights and all; kernels run in the interpreter."""
    example = torch.zeros(2, 256)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    recipe = {"linears": {"0.weight": scheme, "*": "keep"}}
    found, expected = (qpass.trace(model(), recipe, args=(example,), target=target)["LOWERED"]
                       for target in ("cuda", "reference"))  # fmt: skip
    assert any("qpass_cuda" in str(node.target) for node in found.graph.nodes)
    (left,), (right,) = found.run(x), expected.run(x)
    # one linear: float32 sums in two orders, at most 2^-24 · (K + 48) of the sum of magnitudes, which is below 32
    assert (left - right).abs().max() <= 2.0**-24 * (256 + 48) * 32


@pytest.mark.parametrize("text", ["e4m3:token:sym", "e5m2:token:sym"])
def test_quantize_in_aten_is_bit_equal(text: str) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    x[0], x[1], x[2, 0], x[3] = 0, -2, 3e38, 1e-38
    found, expected = QUANTIZE.call(x, text), codec.quantize_rows(x, Format.parse(text))
    assert QUANTIZE.refuses(x, text) is None
    for left, right in zip(found, expected):
        assert left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))
    assert "eight-bit floats" in str(QUANTIZE.refuses(x, "int8:token:asym"))


def test_buckets_and_splits() -> None:
    assert [tiles.bucket_of(rows) for rows in (1, 16, 17, 64, 65, 1024, 1025)] == [16, 16, 64, 64, 1024, 1024, None]
    assert tiles.current(5) == 16 and tiles.current(object()) is None
    with tiles.compiling_for(64):
        assert tiles.current(object()) == 64 and tiles.current(5) == 16
    few = tiles.FOUR_BIT[16]
    assert tiles.splits(few, 16, 4096, 32) == 8 and tiles.splits(few, 16, 28672, 32) == 1
    assert tiles.splits(few, None, 4096, 32) == tiles.splits(few, 1024, 4096, 32) == 1
    for table in (tiles.FOUR_BIT, tiles.WIDE_BLOCK, tiles.EIGHT_BIT, tiles.FP8_BLOCK):
        for bucket in (16, 64):  # a counter for each tile of any number of rows of the bucket
            tile = tiles.tile(table, bucket)
            for rows in range(1, bucket + 1):
                assert 4096 // tile.bn * -(-rows // tile.bm) <= tiles.counters(4096)


def test_tiles_to_try() -> None:
    default = tiles.FOUR_BIT[16]
    usual = tiles.choices(default, "w4a16", "sm_90", 16, 4096, 32)
    assert usual == ((default, 8),)  # off: the same wherever it runs
    with tiles.compiling_for(16, tuned=True):
        found = tiles.choices(default, "w4a16", "sm_90", 16, 28672, 32)
        assert found[0] == (default, 1) and 4 <= len(found) <= 12 and len(set(found)) == len(found)
        assert {count for _, count in found} == {1, 2}
        assert tiles.choices(default, "w4a16", None, 16, 4096, 32) == usual  # a GPU without a list
        assert tiles.choices(default, "", "sm_90", 16, 4096, 32) == usual
    for (_, _, rows), sizes in candidates.TILES.items():
        assert 0 < len(sizes) <= (12 if rows == "many" else 6)
        bucket = {"few": 16, "some": 64, "many": 1024}[rows]
        for bm, bn, *_ in sizes if rows != "many" else ():  # a counter for each tile
            assert 4096 // bn * -(-bucket // bm) <= tiles.counters(4096)


def test_modes_that_tune() -> None:
    assert [mode for mode in modes.MODES if modes.tunes(mode)] == ["max-autotune", "max-autotune-no-cudagraphs"]


def test_rows_of_a_call() -> None:
    program = qpass.trace(model(), "w8a8-int8", args=(torch.zeros(2, 256),), target="cuda")["LOWERED"]
    assert [rows_of(program)([torch.zeros(rows, 256)]) for rows in (1, 77)] == [1, 77]
    assert len(sources()) == 16


@pytest.mark.parametrize("recipe", [
    "w4a16-g128", {"methods": [{"lorc": {"weighted": False, "rank": 8}}], "linears": {"*": "w4a8-int8"}},
], ids=["w4a16", "lorc"])  # fmt: skip
def test_bfloat16_models_without_a_gpu(recipe: object) -> None:
    """The interpreter multiplies and casts the bits of bfloat16; ours does not."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 128)).eval().bfloat16(), torch.randn(4, 256).bfloat16()
    got, want = (qpass.trace(model, recipe, args=(x,), target=target)["LOWERED"].run(x)[0].float()
                 for target in ("cuda", "reference"))  # fmt: skip
    assert (got - want).norm() < 2**-7 * want.norm()


def test_what_no_kernel_takes_has_a_reason() -> None:
    args = (torch.zeros(2, 128),)
    for recipe in ("w8a16", "nvfp4", "int3:g128:asym"):
        text = str(qpass.plan(nn.Sequential(nn.Linear(128, 48)).eval(), recipe, args=args, target="cuda"))
        assert "reference.dequantize" in text and "note: 0: target cuda:sm_90 has no kernel for " in text, text
    branch = {"methods": [{"lorc": {"weighted": False, "rank": 8}}], "linears": {"*": "w4a16-g128"}}
    text = str(qpass.plan(nn.Sequential(nn.Linear(128, 48)).eval(), branch, args=args, target="cuda"))
    assert "cuda.low_rank_up" in text and "note: 0: V: target cuda:sm_90 has no kernel for int8:channel:sym" in text
