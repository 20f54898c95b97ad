"""Inductor's CUDA code for a program, with no GPU: device queries answered, tensors fake, nothing launched."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._inductor.fx_passes.joint_graph as joint_graph
import torch._inductor.select_algorithm as select_algorithm
from torch import fx
from torch._inductor import config
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode

from qpass.graph.program import Program
from qpass.lowering.cuda import tiles
from qpass.lowering.inductor import stand_in
from qpass.lowering.inductor.buckets import compile_bucket, our_choices
from qpass.lowering.inductor.compile import as_module
from qpass.lowering.inductor.modes import options
from qpass.lowering.inductor.package_cuda import on_gpu

SETTINGS = {
    **options(bucket=tiles.FEW), "max_autotune_gemm_backends": "TRITON", "force_disable_caches": True,
    "compile_threads": 1,
    "joint_graph_constant_folding": False, "shape_padding": False,  # both run kernels
}  # fmt: skip


class _Stop(Exception):
    pass


@contextlib.contextmanager
def fake_gpu(capability: tuple[int, int]) -> Iterator[None]:
    """Inside, torch and Triton believe in one GPU of that capability, also where torch was built without CUDA."""
    # the method asks for a CUDA build before it dispatches, the operator does not
    dispatched = lambda self, other, *rest: torch.ops.aten.copy_.default(self, other)  # noqa: E731
    with mock.patch.object(torch.Tensor, "copy_", dispatched), stand_in.device(capability):
        yield


def code_for(
    program: Program, inputs: Sequence[Any], capability: tuple[int, int] = (9, 0), prefer: str = ""
) -> str:
    """The Python that Inductor writes for a LOWERED program on a GPU.

    Args:
        program: planned on any device; its constants' devices are replaced.
        inputs: (shape, dtype) of the flat inputs.
        prefer: as in ``code_of_bucket``.
    """
    module = as_module(program)
    weights = [(tuple(node.meta["val"].shape), node.meta["val"].dtype)
               for node in module.graph.nodes if node.op == "placeholder"][: len(program.used_params())]  # fmt: skip
    _on_cuda(module)
    return _code(module, [*weights, *inputs], capability, prefer)


def _on_cuda(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        node.args, node.kwargs = (torch.fx.node.map_aggregate(part, _moved) for part in (node.args, node.kwargs))
        node.meta.pop("val", None)
    module.recompile()


def code_of_bucket(
    program: Program, bucket: int | None, capability: tuple[int, int] = (9, 0), mode: str | None = None,
    seen: Callable[[GraphLowering], Any] = lambda graph: None, prefer: str = "",
) -> str:  # fmt: skip
    """What ``compile_bucket`` would compile: the program's own symbolic sizes, on a GPU.

    ``seen`` is called with Inductor's graph; of the templates for a dot the first with ``prefer`` in its code is taken.
    """
    moved = on_gpu(program, capability)
    run = lambda: compile_bucket(moved, bucket, mode)  # noqa: E731
    return _captured(run, capability, contextlib.nullcontext(), seen, prefer)


def _moved(argument: Any) -> Any:
    return torch.device("cuda", 0) if isinstance(argument, torch.device) else argument


def _code(module: fx.GraphModule, inputs: Sequence[Any], capability: tuple[int, int], prefer: str = "") -> str:
    def run() -> None:
        tensors = [torch.empty(shape, dtype=kind, device="cuda") for shape, kind in inputs]
        torch.compile(module, fullgraph=True, dynamic=False)(*tensors)

    return _captured(run, capability, FakeTensorMode(), prefer=prefer)


def _source(choice: Any) -> str:
    return Path(choice.bmreq.module_path).read_text() if hasattr(choice, "bmreq") else ""


def _captured(
    run: Callable[[], Any], capability: tuple[int, int], mode: Any,
    seen: Callable[[GraphLowering], Any] = lambda graph: None, prefer: str = "",
) -> str:  # fmt: skip
    """The Python that Inductor writes while ``run`` compiles; the compilation is stopped there."""
    found: list[str] = []

    def stop(graph: GraphLowering) -> None:
        found.append(graph.codegen()[0].value)
        seen(graph)
        raise _Stop

    choose = select_algorithm.AlgorithmSelectorCache.__call__

    def first(self: Any, name: str, choices: Any, *args: Any, **kwargs: Any) -> Any:
        ours = [one for one in choices if isinstance(one, select_algorithm.TritonTemplateCaller)] or choices
        kept = ([one for one in ours if prefer and prefer in _source(one)] or ours)[:1]
        return choose(self, name, kept, *args, **kwargs)

    torch._dynamo.reset()
    logging.getLogger("torch.__trace").propagate = False  # pytest would keep megabytes of it
    with (
        fake_gpu(capability), config.patch(SETTINGS), our_choices(), mode, torch.no_grad(),
        mock.patch.object(joint_graph, "lazy_init", lambda *a, **k: None),
        mock.patch.object(GraphLowering, "_compile_to_module", stop),
        mock.patch.object(PythonWrapperCodegen, "generate_and_run_autotune_block", lambda self: None),
        mock.patch.object(select_algorithm.AlgorithmSelectorCache, "__call__", first),
    ):  # fmt: skip
        try:
            run()
        except Exception:
            if not found:
                raise
    torch._dynamo.reset()
    return found[0]
