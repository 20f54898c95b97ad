"""Packages for a GPU that is not here, up to the C++ compiler: what is in them, and that nothing was run for it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.fx_passes.joint_graph as joint_graph
from safetensors.torch import load_file
from torch import nn
from torch._inductor.codecache import CudaKernelParamCache
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.cpp_builder import CppBuilder
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.utils import cpp_extension

pytest.importorskip("triton")

import qpass
from qpass import pipeline
from qpass.errors import UnsupportedError
from qpass.graph.program import Program, materialise
from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.capability import Capability
from qpass.lowering.inductor import attention, package_cuda, stand_in, toolkit
from qpass.lowering.inductor.buckets import Rows, rows_of

FILE = "model/data/aotinductor"


def program() -> Program:
    model = nn.Sequential(nn.Linear(256, 128)).eval().to(torch.bfloat16)
    args = (torch.zeros(4, 256, dtype=torch.bfloat16),)
    return qpass.trace(model, "w8a8-int8", args=args, target="cuda")["LOWERED"]


@contextlib.contextmanager
def without_compiler(folder: Path) -> Iterator[None]:
    """Inside, C++ is written and not compiled, no kernel can be launched, and a torch without CUDA will do."""
    def build(self: CppBuilder) -> None:
        Path(self.get_target_file_path()).write_bytes(b"")

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a kernel was run")

    with contextlib.ExitStack() as stack:
        for place, name, new in ((CppBuilder, "build", build), (CachingAutotuner, "run", launched),
                                 (CachingAutotuner, "bench", launched), (cpp_extension, "CUDA_HOME", str(folder)),
                                 (joint_graph, "lazy_init", lambda *a, **k: None),
                                 (toolkit, "toolkit", contextlib.nullcontext)):  # fmt: skip
            stack.enter_context(mock.patch.object(place, name, new))
        yield


def test_what_is_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its four models, for sm_80: their kernels are all there, each once, and for that GPU."""
    monkeypatch.setattr(Rows, "buckets", lambda self: (tiles.FEW, None))
    lowered, path = program(), tmp_path / "model.pt2"
    with without_compiler(tmp_path):
        facts = json.loads(json.dumps(package_cuda.package(lowered, path, (8, 0))))
    launched = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for model in ("few", "many"):
            (wrapper,) = (name for name in names if name.startswith(f"{FILE}/{model}/") and "wrapper.cpp" in name)
            text = archive.read(wrapper).decode()
            found = re.findall(r'(\w+) = loadKernel\("[^"]*/(\w+\.cubin)", "(\w+)"', text)
            run = text[text.index("AOTInductorModel::run_impl") :]
            launched[model] = re.findall(r"\bcall_(\w+)\(", run)
            assert sorted(launched[model]) == sorted(kernel for kernel, _, _ in found)
            cubins = {Path(name).name for name in names if name.startswith(f"{FILE}/{model}/") and "cubin" in name}
            assert cubins == {file for _, file, _ in found} and len(cubins) == len(found)
            for _, file, symbol in found:
                binary = archive.read(f"{FILE}/{model}/{file}")
                assert binary[:4] == b"\x7fELF" and binary[48] == 80 and symbol.encode() in binary
            metadata = [name for name in names if name.startswith(f"{FILE}/{model}/") and "metadata" in name]
            assert all(json.loads(archive.read(name))["AOTI_COMPUTE_CAPABILITY"] == "80" for name in metadata)
    assert any("eight_bit_kernel" in name for name in launched["few"])
    # weights are inputs, in this order, before the user's; nothing is timed, and what had a choice is told
    stored = load_file(str(path.with_suffix(".safetensors")))
    assert facts["weights"] == lowered.used_params()
    assert all(torch.equal(stored[name], tensor) for name, tensor in materialise(lowered).items())
    told = facts["untimed"]["many"]
    assert told and set(told) < set(launched["many"]) and min(told.values()) > 1


def test_nothing_stays_replaced_after_an_error(tmp_path: Path) -> None:
    places = [(PythonWrapperCodegen, "generate_and_run_autotune_block"), (CachingAutotuner, "_precompile_worker"),
              (torch.cuda, "get_device_capability"), (torch.cuda, "current_device")]  # fmt: skip
    before = [getattr(place, name) for place, name in places]
    CudaKernelParamCache.cache["kept"] = {}
    with pytest.raises(ZeroDivisionError), package_cuda.never_launched() as untimed, stand_in.device((9, 0)):
        assert torch.cuda.get_device_capability() == (9, 0) and untimed == {} and not CudaKernelParamCache.cache
        raise ZeroDivisionError
    assert [getattr(place, name) for place, name in places] == before
    assert CudaKernelParamCache.cache.pop("kept") == {}


def test_a_kernel_has_to_fit() -> None:
    """Nothing is loaded, so its memory is asked about before."""
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.errors import OutOfResources

    kernel: Any = mock.Mock(metadata=mock.Mock(shared=150_000))
    with stand_in.device((8, 0)):
        CompiledKernel._init_handles(kernel)
    with stand_in.device((8, 9)), pytest.raises(OutOfResources, match="Required: 150000, Hardware limit: 101376"):
        CompiledKernel._init_handles(kernel)


def test_the_model_for_a_call_is_the_bucket_of_its_rows() -> None:
    rows = rows_of(program())
    facts = json.loads(json.dumps(package_cuda.described(rows)))
    assert rows.buckets() == (*tiles.BUCKETS, None)
    for count in (1, 16, 17, 64, 65, 1024, 1025, 5000):
        inputs = [torch.empty(count, 256, device="meta")]
        assert package_cuda.bucket_for(facts, inputs) == package_cuda.NAMES[tiles.bucket_of(rows(inputs))]
    unknown = Rows(0, rows.where, rows.counts, unknown=True)
    assert unknown.buckets() == (None,) and package_cuda.bucket_for(package_cuda.described(unknown), inputs) == "many"
    assert Rows(40, {}, (), unknown=False).buckets() == (tiles.SOME,)


@pytest.mark.parametrize("mask", [None, torch.bool, torch.float32])
def test_attention_by_name_is_attention(mask: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given to ATen's kernel, which needs a GPU: by its definition, with rows of a mask that it can load."""
    def kernel(query: Any, key: Any, value: Any, bias: Any, sums: bool, drop: float, causal: bool, scale: Any) -> Any:
        assert bias is None or (bias.shape == (2, 4, 3, 21) and bias.stride(2) % 16 == 0 and bias.dtype == query.dtype)
        return (sdpa(query, key, value, bias, is_causal=causal, scale=scale),)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.ops.aten._scaled_dot_product_efficient_attention, "default", kernel)
    torch.manual_seed(0)
    query, (key, value) = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 2, 21, 8)
    given = None if mask is None else torch.randn(2, 1, 3, 21) if mask.is_floating_point else torch.rand(3, 21) > 0.3
    got = attention.efficient(query, key, value, given, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(got, sdpa(query, key, value, given, scale=0.3, enable_gqa=True))
    for channels, dtype, taken in ((64, torch.bfloat16, True), (60, torch.bfloat16, False), (60, torch.float32, True)):
        assert attention._takes([torch.empty(1, 2, 3, channels, dtype=dtype)] * 3) is taken


def test_where_no_package_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason, and what helps; none of them is that no GPU is here."""
    def refusal(target: str) -> str:
        with pytest.raises(UnsupportedError) as caught:
            qpass.package(nn.Linear(64, 64), "w8a8-int8", tmp_path / "x.pt2", (torch.zeros(2, 64),), target=target)
        return str(caught.value)

    assert "for NVIDIA's GPUs, not for gfx942" in refusal("rocm")
    assert "checked for sm_80, sm_86, sm_89, sm_90, not for sm_75" in refusal("cuda:sm_75")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA: it has no libtorch_cuda.so" in refusal("cuda:sm_90")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(toolkit, "_folders", lambda: [tmp_path])
    assert "headers of CUDA are missing: cuda.h, " in refusal("cuda") and "nvidia-cuda-cccl" in refusal("cuda")
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    assert "are made with torch 2.13.x, this is 2.12.0" in refusal("cuda")


def test_where_no_package_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt2"
    path.touch()
    path.with_suffix(".json").write_text(json.dumps({"target": "cuda:sm_80", "torch": torch.__version__,
                                                     "capability": "sm_80"}))  # fmt: skip
    packager = pipeline.load_target("cuda:sm_80").packager
    assert packager is not None
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="the package is for sm_80, and no GPU is here"):
            qpass.load_package(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Capability, "here", lambda: Capability(9, 0, stated=False))
    with pytest.raises(UnsupportedError, match=r'the GPU is sm_90.*target="cuda:sm_90"'):
        qpass.load_package(path)


def test_headers_of_wheels_and_a_driver_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of one version; another folder may have ``nv/target`` alone. The driver is linked by name."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, toolkit._HEADERS), (second, (toolkit._TARGET,))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    monkeypatch.setattr(toolkit, "_folders", lambda: [first])
    assert toolkit.missing() == "nv/target"
    monkeypatch.setattr(toolkit, "_folders", lambda: [second, first])
    assert toolkit.missing() is None
    with toolkit.toolkit() as home:
        assert str(home) == cpp_extension.CUDA_HOME
        assert all((home / "include" / name).is_file() for name in (*toolkit._HEADERS, toolkit._TARGET))
        library = ctypes.CDLL(str(home / "lib64" / "libcuda.so"))
        assert all(hasattr(library, name) for name in toolkit._DRIVER)
        assert b"libcuda.so.1\0" in (home / "lib64" / "libcuda.so").read_bytes()
    assert not home.exists()


@pytest.mark.skipif(torch.version.cuda is None or toolkit.missing() is not None,
                    reason="a torch that was built for CUDA, and its headers")  # fmt: skip
def test_a_package_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ is compiled, and asks for torch's libraries and the driver's, which need not be here."""
    monkeypatch.setattr(Rows, "buckets", lambda self: (tiles.FEW,))
    model, args = nn.Sequential(nn.Linear(64, 64)).eval().to(torch.bfloat16), torch.zeros(4, 64, dtype=torch.bfloat16)
    path = qpass.package(model, "w8a8-int8", tmp_path / "model.pt2", (args,), target="cuda:sm_80")
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["capability"] == "sm_80" and about["operators"] is None
    with zipfile.ZipFile(path) as archive:
        (library,) = (archive.read(name) for name in archive.namelist() if name.endswith(".so"))
    assert all(name in library for name in (b"libcuda.so.1\0", b"libtorch_cuda.so\0", b"cuLaunchKernel\0"))
