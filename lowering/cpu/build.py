"""Compile the C++ operators at first use and load them.

Every file of C++ becomes one object with the flags of its own instruction set; the shared library is named after a hash
of the sources, the compiler and torch, so a changed file or a new torch never meets an old build.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from qpass.errors import UnsupportedError

HERE = Path(__file__).resolve().parent
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
BF16 = [*AVX512, "-mavx512bf16"]
AMX = [*BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
KERNELS = {
    "isa.cpp": [],
    "activations.cpp": AVX512,
    "attention_fp32.cpp": AVX512,
    "decode.cpp": AVX512,
    "int8_avx512.cpp": AVX512,
    "integer_attention.cpp": AVX512,
    "integer_rows.cpp": AVX512,
    "weight_rows_fp32.cpp": AVX512,
    "weight_panel_fp32.cpp": AVX512,
    "attention_bf16.cpp": BF16,
    "weight_rows_bf16.cpp": BF16,
    "weight_panel_bf16.cpp": BF16,
    "int8_amx.cpp": AMX,
    "weight_small_amx.cpp": AMX,
    "weight_panel_amx.cpp": AMX,
}
OPERATORS = ["operators.cpp"]
# No contraction: a fused multiply-add that only one of two kernels got would make M change the result of a row.
COMMON = ["-O3", "-fPIC", "-ffp-contract=off", "-w"]
CPU_FLAGS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}
COMPILE_SECONDS = 600


def compiler() -> str | None:
    """Path of the C++ compiler: ``$CXX`` if set, else g++."""
    return shutil.which(os.environ.get("CXX") or "g++")


def cpu_flags() -> set[str]:
    """Feature names of the first processor in /proc/cpuinfo."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def available() -> str | None:
    """None where the kernels can be used, else the reason in words.

    Looks at the machine only; the first :func:`load` is what compiles, and raises if that fails.
    """
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"the CPU kernels need Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    missing = sorted(CPU_FLAGS - cpu_flags())
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    if compiler() is None:
        return f"the C++ compiler {os.environ.get('CXX') or 'g++'!r} was not found"
    return None


def has_amx() -> bool:
    """Whether the kernels will use AMX here, told from the machine and ``QPASS_CPU_ISA`` without compiling them."""
    lower = os.environ.get("QPASS_CPU_ISA") in ("avx512", "avx512_bf16")
    return not lower and cpu_flags() >= {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"}


def cache_dir() -> Path:
    """Private folder of the builds: ``$QPASS_CACHE_DIR`` or ``~/.cache/qpass``, below it ``cpu``.

    A folder that someone else could write would let them choose the code that this process loads.
    """
    root = os.environ.get("QPASS_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "qpass"
    )
    folder = Path(root) / "cpu"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"it belongs to user {folder.stat().st_uid}")
    except OSError as error:
        raise UnsupportedError(
            f"the folder for compiled kernels cannot be used ({error})",
            where=str(folder),
            fix="set QPASS_CACHE_DIR to a folder that you own",
        ) from error
    return folder


def _torch_flags() -> list[str]:
    base = Path(torch.__file__).resolve().parent / "include"
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    includes = ["-isystem", str(base), "-isystem", str(base / "torch" / "csrc" / "api" / "include")]
    # -fopenmp here and not when linking: at::parallel_for needs the pragma, and torch already brought its OpenMP.
    return [*includes, f"-D_GLIBCXX_USE_CXX11_ABI={abi}", "-fopenmp"]


def _flags(name: str) -> list[str]:
    # torch's headers say which C++ they need; the kernels use none of them.
    return [*COMMON, "-std=c++17", *KERNELS[name]] if name in KERNELS else [*COMMON, "-std=c++20", *_torch_flags()]


@functools.lru_cache
def _compiler_version(path: str) -> str:
    return _run([path, "--version"]).partition("\n")[0]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failure(command, str(error)) from error
    if done.returncode:
        raise _failure(command, done.stderr)
    return done.stdout


def _failure(command: list[str], text: str) -> UnsupportedError:
    lines = [line for line in text.splitlines() if "error" in line or "cannot" in line] or text.splitlines()[-3:]
    return UnsupportedError(
        "the CPU kernels could not be compiled: " + "; ".join(lines[:3])[:600],
        where=" ".join([command[0], "...", *command[-3:]]),
        fix="install g++ 11 or newer, or set CXX to one",
    )


def _digest(cxx: str) -> str:
    text = hashlib.sha256()
    for part in [_compiler_version(cxx), torch.__version__, *COMMON, *AMX, *_torch_flags()]:
        text.update(part.encode() + b"\0")
    for path in sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h")):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(cxx: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def one(name: str) -> str:
            output = os.path.join(scratch, name + ".o")
            _run([cxx, *_flags(name), "-c", str(HERE / name), "-o", output])
            return output

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(one, [*OPERATORS, *KERNELS]))
        library = os.path.join(scratch, "library.so")
        folder = str(Path(torch.__file__).resolve().parent / "lib")
        _run([cxx, "-shared", *objects, f"-L{folder}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder}", "-o", library])
        os.replace(library, target)  # atomic: another process sees all of it or nothing


def build() -> Path:
    """Compile unless done before; the path of the shared library."""
    reason = available()
    if reason is not None:
        raise UnsupportedError(reason, where="qpass.lowering.cpu", fix="use another lowering for this device")
    cxx = compiler()
    assert cxx is not None
    target = cache_dir() / f"qpass_cpu_{_digest(cxx)}.so"
    if not target.exists():
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                _compile(cxx, target)
    return target


@functools.lru_cache
def load_library() -> str:
    """Build if needed and register the operators with torch; the path of the library."""
    path = str(build())
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise UnsupportedError(
            f"the compiled CPU kernels could not be loaded ({error})", where=path, fix="delete the file and try again"
        ) from error
    return path
