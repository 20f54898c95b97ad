"""Modes on a GPU that is not here: what Inductor is asked for, and that nothing forbids to record a CUDA graph."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx as compile_fx
import torch._inductor.cudagraph_utils as cudagraph_utils
from torch import nn
from torch._inductor import config
from torch._inductor.graph import GraphLowering

pytest.importorskip("triton")

import qpass
from qpass import pipeline
from qpass.errors import InputError
from qpass.lowering.cuda import tiles
from qpass.lowering.inductor.modes import options
from tests.lowering.cuda import fakegpu

BF16 = torch.bfloat16


def program(scheme: str) -> Any:
    model = nn.Sequential(nn.Linear(1024, 512), nn.SiLU(), nn.Linear(512, 256)).eval().to(BF16)
    return qpass.trace(model, scheme, args=(torch.zeros(4, 1024, dtype=BF16),), target="cuda")["LOWERED"]


def test_graphs_are_recorded_for_few_rows() -> None:
    for bucket, few in ((tiles.FEW, True), (tiles.SOME, True), (tiles.DENSE, False), (None, False)):
        assert options("reduce-overhead", bucket)["triton.cudagraphs"] is few
        assert options("max-autotune", bucket)["triton.cudagraphs"] is few
        assert "triton.cudagraphs" not in options(None, bucket)
        assert "triton.cudagraphs" not in options("max-autotune-no-cudagraphs", bucket)
        assert options(None, bucket, fixed=True).get("triton.enable_persistent_tma_matmul", False) is not few
        assert "triton.enable_persistent_tma_matmul" not in options(None, bucket)  # a symbol would become a number


def test_nothing_keeps_a_graph_from_being_recorded() -> None:
    """With split K: its counters are written, and are among the inputs that stay where they are."""
    found: dict[str, Any] = {}
    made = compile_fx.fx_codegen_and_compile

    def compiled(gm: Any, *args: Any, **kwargs: Any) -> Any:
        found.update(static=set(kwargs["static_input_idxs"]), on=config.triton.cudagraphs)
        return made(gm, *args, **kwargs)

    def seen(graph: GraphLowering) -> None:
        found.update(written=set(graph.mutated_input_idxs), partial=config.triton.cudagraph_skip_dynamic_graphs,
                     parts=len(graph.partition_maps or ()) if config.graph_partition else 1,
                     reason=cudagraph_utils.check_lowering_disable_cudagraph(graph.device_node_mapping))  # fmt: skip

    lowered = program("w4a16-g128")
    with mock.patch.object(compile_fx, "fx_codegen_and_compile", compiled):
        fakegpu.code_of_bucket(lowered, tiles.FEW, mode="reduce-overhead", seen=seen)
    assert found["on"] is True and found["reason"] is None and not found["partial"]
    assert found["parts"] == 1  # nothing that a graph cannot hold cuts it
    assert len(found["written"]) == 2 and found["written"] <= found["static"]  # a counter for each linear
    names = lowered.used_params()
    assert found["static"] == set(range(len(names)))
    assert {names[at].rpartition(".")[2] for at in found["written"]} == {"counters"}


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w8a8-fp8"])
def test_persistent_templates_are_tried_for_many_rows(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of bfloat16 and of FP8, which load tiles by TMA; int8 has none."""
    for key, value in options(None, None, fixed=True).items():
        if key not in fakegpu.SETTINGS:
            monkeypatch.setitem(fakegpu.SETTINGS, key, value)
    code = fakegpu.code_for(program(scheme), [((2048, 1024), BF16)], prefer="descriptor")
    assert "NUM_SMS" in code and "descriptor_load" in code


def test_a_symbol_stays_a_symbol() -> None:
    """With the persistent templates on, the rows here would be 4, as in the example."""
    assert re.search(r"empty_strided_cuda\(\(s\d+, 512\)", fakegpu.code_of_bucket(program("w4a16-g128"), None))


@pytest.mark.parametrize(("target", "mode", "text"), [("cuda", "fast", "unknown mode 'fast'.*reduce-overhead"),
                                                     ("cpu", "reduce-overhead", "target cpu has no mode")])  # fmt: skip
def test_modes_that_do_not_exist(target: str, mode: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        pipeline.load_target(target, mode)
