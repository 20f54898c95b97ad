"""Kernels in the Python that Inductor wrote: which run, and each compiled for a GPU that is not here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any
from unittest import mock

import torch._inductor.runtime.triton_helpers as helpers
import torch._inductor.runtime.triton_heuristics as heuristics

from qpass.lowering.triton.compile_only import Built, compile_for

_DECORATORS = ("template", "pointwise", "reduction", "persistent_reduction", "user_autotune")


def launches(code: str) -> list[str]:
    """Names of what a call runs, in order: Triton kernels, and calls of libraries; views are none."""
    body = code[code.index("    def call(") :]
    found = re.findall(r"(\w+)\.run\(|extern_kernels\.(\w+)\(|torch\.ops\.([\w.]+)\(", body)
    names = ["".join(parts) for parts in found]
    return [name for name in names if not name.startswith("aten.view")]


def compiled(code: str, name: str, folder: Path, *, warps: int, target: str = "sm_90") -> Built:
    """One of Inductor's own kernels, compiled with the block sizes of a row for each program."""
    module, meta = loaded(code, name, folder)
    types = dict(meta["triton_meta"]["signature"])
    constants = {key: 1 for key, kind in types.items() if kind == "constexpr"}
    return compile_for(getattr(module, name), types, constants, target, warps=warps, ragged=("xnumel",))


def loaded(code: str, name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """(a module with a kernel that Inductor wrote or rewrote, as it is, and what its decorator was given)."""
    text = re.search(rf"async_compile\.triton\('{name}', '''(.*?)'''", code, re.S)
    assert text is not None
    meta: dict[str, Any] = {}

    def decorator(*args: Any, **kwargs: Any) -> Any:
        meta.update(kwargs)
        return lambda kernel: kernel

    path = folder / f"{name}.py"
    path.write_text(text[1])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patches = [mock.patch.object(heuristics, one, decorator) for one in _DECORATORS]
    with mock.patch.object(helpers, "set_driver_to_gpu", lambda: None):
        for patch in patches:
            patch.start()
        try:
            spec.loader.exec_module(module)
        finally:
            for patch in patches:
                patch.stop()
    return module, meta
