"""What a package for a GPU is compiled and linked with, where no CUDA toolkit is: headers from wheels, no driver.

AOTInductor's C++ includes CUDA's headers and is linked against the driver's library, ``libcuda.so.1``, which comes with
a GPU's driver. Here the link sees a library of that name which has the functions' names and nothing else; the package
asks for the real one when it is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils import cpp_extension

_HEADERS = ("cuda.h", "cuda_runtime.h", "cuda_fp16.h", "crt/host_config.h")
_TARGET = "nv/target"  # what cuda_fp16.h includes: a part of CUDA's C++ libraries
_DRIVER = ("cuGetErrorString", "cuModuleLoad", "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction",
           "cuFuncSetAttribute", "cuLaunchKernel", "cuTensorMapEncodeTiled")  # fmt: skip


def missing() -> str | None:
    """Which of CUDA's headers are nowhere to be found; None if none."""
    folders = _folders()
    found = [name for name in _HEADERS if not any((folder / name).is_file() for folder in folders)]
    if not found and _base(folders) is None:
        found = list(_HEADERS)
    found += [] if _holder(folders) else [_TARGET]
    return ", ".join(found) or None


@contextlib.contextmanager
def toolkit() -> Iterator[Path]:
    """Inside, torch takes a folder that has all it needs for CUDA's. ``missing`` must be None."""
    folders = _folders()
    base, holder = _base(folders), _holder(folders)
    assert base is not None and holder is not None
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "include").mkdir()
        (home / "lib64").mkdir()
        for entry in base.iterdir():
            (home / "include" / entry.name).symlink_to(entry)
        if base != holder:
            (home / "include" / "nv").symlink_to(holder / "nv")
        source = home / "driver.c"
        source.write_text("".join(f"void {function}(void) {{}}\n" for function in _DRIVER))
        command = [get_cpp_compiler(), "-x", "c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source)]
        subprocess.run([*command, "-o", str(home / "lib64" / "libcuda.so")], check=True, capture_output=True)
        with mock.patch.object(cpp_extension, "CUDA_HOME", str(home)):
            yield home


def _folders() -> list[Path]:
    """Where headers may be: the toolkit, NVIDIA's wheels, Triton's copy."""
    found = [Path(cpp_extension.CUDA_HOME) / "include"] if cpp_extension.CUDA_HOME else []
    for name, pattern in (("nvidia", "*/include"), ("triton", "backends/nvidia/include")):
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found += sorted(Path(place).glob(pattern))
    return found


def _base(folders: list[Path]) -> Path | None:
    """The first folder that has all of them: those of two versions are not mixed."""
    return next((one for one in folders if all((one / name).is_file() for name in _HEADERS)), None)


def _holder(folders: list[Path]) -> Path | None:
    base = _base(folders)
    return next((one for one in [*([base] if base else []), *folders] if (one / _TARGET).is_file()), None)
