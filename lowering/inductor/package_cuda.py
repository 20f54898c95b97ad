"""A LOWERED program for a GPU -> one AOTInductor package with a model for each bucket of rows. Needs no GPU.

Inductor (2.13) takes the binary of a Triton kernel when it is launched, in a block of all kernels that it runs at the
end of its code generation (``generate_and_run_autotune_block``). Here only the first half of that block is run, which
defines the kernels; they are compiled for the stand-in, and their binaries are kept where a launch would keep them.
Nothing is timed, with a GPU neither, so that a package does not depend on the machine that it is made on: of several
configurations of a kernel the first is taken, and dense dots are ATen's. ``package`` tells which kernels had a choice.

Weights are inputs before the user's, as for ``buckets.Bucketed``: the models share them, and the counters of split K,
which are among them and written in place, stay zero between calls. They are beside the package, in ``.safetensors``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import sympy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._inductor import aot_compile, config
from torch._inductor.codecache import CudaKernelParamCache, PyCodeCache
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.package import package_aoti
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.export.pt2_archive._package import load_pt2
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from qpass.errors import UnsupportedError
from qpass.graph.program import Program, copy_graph, materialise
from qpass.lowering.cuda import tiles
from qpass.lowering.inductor import stand_in, toolkit
from qpass.lowering.inductor.attention import name_kernels
from qpass.lowering.inductor.buckets import Rows, our_choices, rows_of
from qpass.lowering.inductor.compile import as_module
from qpass.lowering.inductor.modes import BASE

CHECKED_TORCH = "2.13."
"""What is replaced of torch is private, and was read in this version."""
NAMES = {tiles.FEW: "few", tiles.SOME: "some", tiles.DENSE: "dense", None: "many"}
SETTINGS: dict[str, Any] = {
    **BASE, "max_autotune_gemm": False, "shape_padding": False, "joint_graph_constant_folding": False,
    "compile_threads": 1, "force_disable_caches": True, "use_static_triton_launcher": False,
    "triton.autotune_at_compile_time": True, "triton.autotune_with_sample_inputs": False,
    "aot_inductor.package": True, "aot_inductor.embed_kernel_binary": False, "aot_inductor.precompile_headers": False,
    **({"cpp.march": ""} if hasattr(config.cpp, "march") else {}),
}  # fmt: skip
"""Nothing that runs a kernel, or that was timed before on this machine; C++ for any processor of the kind."""


def why_not() -> tuple[str, str] | None:
    """Why no package can be made with this torch, and what helps; None if one can."""
    if not torch.__version__.startswith(CHECKED_TORCH):
        return f"packages for a GPU are made with torch {CHECKED_TORCH}x, this is {torch.__version__}", "install that"
    if torch.version.cuda is None:
        return (f"torch {torch.__version__} was built without CUDA: it has no libtorch_cuda.so to link a package with",
                "make it with a torch that was built for CUDA; no GPU is needed there")  # fmt: skip
    if names := toolkit.missing():
        return f"headers of CUDA are missing: {names}", "pip install nvidia-cuda-cccl, or set CUDA_HOME to a toolkit"
    return None


def package(program: Program, path: Path, capability: tuple[int, int]) -> dict[str, Any]:
    """Write ``program`` into ``path`` and its weights beside it, and give what ``load`` has to know.

    Raises:
        UnsupportedError: Inductor cannot compile it so.
    """
    rows, moved = rows_of(program), on_gpu(program, capability)
    files, untimed = {}, {}
    with toolkit.toolkit():
        for bucket in rows.buckets():
            files[NAMES[bucket]], untimed[NAMES[bucket]] = compile_files(moved, bucket, capability)
    weights = save_weights(program, path.with_suffix(".safetensors"))
    package_aoti(str(path), files)
    return {"rows": described(rows), "weights": weights, "untimed": untimed}


def compile_files(
    program: Program, bucket: int | None, capability: tuple[int, int]
) -> tuple[list[str], dict[str, int]]:
    """(the files of one bucket's model, kernel -> number of configurations of which the first was taken)."""
    module = as_module(program)
    name_kernels(module.graph)
    module.recompile()
    inputs = tuple(node.meta["val"] for node in module.graph.nodes if node.op == "placeholder")
    outputs = next(node for node in module.graph.nodes if node.op == "output").args[0]
    module._in_spec = pytree.tree_structure((inputs, {}))
    module._out_spec = pytree.tree_structure(tuple(0 for _ in outputs))
    try:
        with (
            torch.no_grad(), stand_in.device(capability), our_choices(), tiles.compiling_for(bucket),
            never_launched() as untimed, sdpa_kernel(SDPBackend.MATH),
        ):  # fmt: skip
            files = aot_compile(module, inputs, options=dict(SETTINGS))
    except torch._inductor.exc.InductorError as error:
        raise UnsupportedError(f"AOTInductor could not compile the program: {error}",
                               fix="use qpass.compile, which compiles for this process") from error  # fmt: skip
    assert isinstance(files, list)
    called = [file for file in map(str, files) if file.endswith(".json") and '"qpass' in Path(file).read_text()]
    if called:
        raise UnsupportedError("the program calls an operator that is Python's, which a package cannot hold",
                               fix="use qpass.compile, which compiles for this process")  # fmt: skip
    return [str(file) for file in files], untimed


@contextlib.contextmanager
def never_launched() -> Iterator[dict[str, int]]:
    """Inside, kernels are compiled and their binaries kept, and none is launched or timed.

    Gives a dict that fills: kernel -> number of configurations, where it had several and the first was taken.
    """
    untimed: dict[str, int] = {}
    compile_all = CachingAutotuner._precompile_worker

    def compile_first(self: Any) -> None:
        if self.configs and len(self.configs) > 1:
            untimed[self.inductor_meta["kernel_name"]] = len(self.configs)
            self.configs = self.configs[:1]
        compile_all(self)

    def define(self: Any) -> None:
        self.kernel_autotune_defs.splice("async_compile.wait(globals())\ndel async_compile\n")
        scope: dict[str, Any] = {}
        exec(self.kernel_autotune_defs.getvalue(), scope)
        for kernel in scope.values():
            if isinstance(kernel, CachingAutotuner):
                kernel.save_gpu_kernel("stream", kernel.launchers[0])

    with (
        mock.patch.object(PythonWrapperCodegen, "generate_and_run_autotune_block", define),
        mock.patch.object(CachingAutotuner, "_precompile_worker", compile_first),
        # names come again in every bucket, and what was not loaded is nothing for a later compilation to find
        mock.patch.dict(CudaKernelParamCache.cache, clear=True),
        mock.patch.dict(PyCodeCache.modules_no_attr, clear=True),
    ):  # fmt: skip
        yield untimed


def on_gpu(program: Program, capability: tuple[int, int]) -> Program:
    """The program as it would have been traced on a GPU: its types and the devices that it names."""
    if any(isinstance(param, Tensor) and param.is_cuda for param in program.params.values()):
        return program
    graph, _ = copy_graph(program.graph)
    values = [node.meta.get("val") for node in graph.nodes]
    (fake,) = {value.fake_mode for value in values if hasattr(value, "fake_mode")}
    with stand_in.device(capability), fake:
        for node in graph.nodes:
            node.args, node.kwargs = (torch.fx.node.map_aggregate(part, _moved) for part in (node.args, node.kwargs))
            if isinstance(value := node.meta.get("val"), Tensor):
                kind = {"dtype": value.dtype, "device": "cuda"}
                node.meta["val"] = torch.empty_strided(value.shape, value.stride(), **kind)
    return program.with_graph(graph)


def _moved(argument: Any) -> Any:
    return torch.device("cuda", 0) if isinstance(argument, torch.device) else argument


def save_weights(program: Program, path: Path) -> list[str]:
    """Write the tensors that the program reads into ``path``; their names, in the order of the models' inputs."""
    kept: dict[str, Tensor] = {}
    for name, tensor in materialise(program).items():
        if not tensor.is_contiguous():
            raise UnsupportedError(f"the weight {name} is not in order", fix="report this program")
        kept[name] = tensor.detach().cpu().clone()
    save_file(kept, str(path))
    return list(kept)


def described(rows: Rows) -> dict[str, Any]:
    """``rows`` as numbers: each count is a sum of products of sizes, a factor and the power of each size.

    A count that is no such sum is taken for unknown: then the model for any number of rows is the only one that is
    asked for.
    """
    sums, unknown = [], rows.unknown
    for count in rows.counts:
        terms = sympy.Poly(count, *rows.where).terms() if count.is_polynomial(*rows.where) else []
        unknown |= not terms or not all(factor.is_Integer for _, factor in terms)
        sums.append([[int(factor), *powers] for powers, factor in terms] if not unknown else [])
    return {"fixed": rows.fixed, "sizes": list(map(list, rows.where.values())), "sums": sums, "unknown": unknown}


def bucket_for(rows: Mapping[str, Any], inputs: Sequence[Tensor]) -> str:
    """The model for a call with these inputs; ``rows`` is what ``described`` gave."""
    sizes = [inputs[at].shape[dim] for at, dim in rows["sizes"]]
    counts = [rows["fixed"]] + [sum(factor * prod(size**power for size, power in zip(sizes, powers))
                                    for factor, *powers in terms) for terms in rows["sums"]]  # fmt: skip
    return NAMES[None if rows["unknown"] else tiles.bucket_of(max(counts))]


def load(path: Path, facts: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """The function in a package: contiguous tensors on the GPU in, a flat tuple out; ``facts`` from ``package``."""
    stored = load_file(str(path.with_suffix(".safetensors")), device="cuda")
    weights = [stored[name] for name in facts["weights"]]
    models = load_pt2(str(path)).aoti_runners

    def run(*inputs: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            return tuple(models[bucket_for(facts["rows"], inputs)](*weights, *inputs))

    return run
