"""Modes of ``torch.compile`` for a GPU: what each asks of Inductor, for a bucket of rows, and weights that stay put.

CUDA graphs are recorded for up to ``SOME`` rows: there a step is many kernels of microseconds. Longer ones hide their
launches, and a recording of each length would hold memory. Inductor records a graph again for every new size of an
input, so a mode with CUDA graphs pays where sizes come back: not with a cache that grows by a token a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch._inductor.compile_fx as compile_fx
from torch._inductor import list_mode_options

from qpass.lowering.cuda import tiles

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Names and meaning are ``torch.compile``'s."""

BASE = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON,ATEN"}
"""With these Inductor's own templates take the dense dots, with all that is pointwise behind them in one kernel."""

PERSISTENT = {"triton.enable_persistent_tma_matmul": True}
"""For many rows its persistent templates are tried too, which load by TMA; autotuning says where that pays.

Only where no size is a symbol: to see whether TMA may load a tile, Inductor takes the number of rows for what it was in
the example, and says so in a guard; nobody reads the guards of a graph that is compiled alone.
"""


def options(mode: str | None = None, bucket: int | None = None, *, fixed: bool = False) -> dict[str, Any]:
    """Inductor's configuration for graphs of one bucket. ``fixed``: no size is a symbol."""
    few = bucket in (tiles.FEW, tiles.SOME)
    asked = dict(list_mode_options(mode or "default"))
    if "triton.cudagraphs" in asked:
        asked["triton.cudagraphs"] = few
    return {**BASE, **(PERSISTENT if fixed and not few else {}), **asked}


@contextlib.contextmanager
def static_inputs(count: int) -> Iterator[None]:
    """Inside, the first ``count`` inputs of a graph are said to stay where they are from call to call.

    They are the weights, and with them the counters of split K. Otherwise a CUDA graph would copy each weight at every
    call, and none would be recorded at all, as counters are written. Inductor knows that of a module's parameters, and
    ours are inputs.
    """
    with mock.patch.object(compile_fx, "get_static_input_idxs", lambda fixed: list(range(count))):
        yield
