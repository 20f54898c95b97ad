"""Compile a kernel for a GPU that is not there, and read off what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qpass.errors import UnsupportedError

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_WARP = {"cuda": 32, "hip": 64}


@dataclass(frozen=True)
class Built:
    """What one kernel became.

    Attributes:
        name: of the kernel.
        target: ``sm_90`` or ``gfx942``.
        ttgir, assembly: Triton's GPU dialect; PTX, or AMD's assembly.
        sass: the machine's instructions as (address, text); empty where no disassembler is there.
        registers, stack, shared: per thread, per thread in bytes, per program in bytes; -1 where unknown.
        warps: per program.
    """

    name: str
    target: str
    ttgir: str
    assembly: str
    sass: tuple[tuple[int, str], ...]
    registers: int
    stack: int
    shared: int
    warps: int


def compile_for(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], target: str = "sm_90", *,
    warps: int = 4, ragged: tuple[str, ...] = ("M",),
) -> Built:  # fmt: skip
    """Compile ``kernel`` for ``target``.

    Args:
        kernel: a ``triton.jit`` function, not an interpreted one.
        types: parameter -> Triton's type, ``*bf16`` or ``i32``; parameters of ``constants`` need none.
        constants: parameter -> value, for constexpr parameters and for arguments that are None.
        target: ``sm_NN`` or ``gfxNNN``.
        warps: per program.
        ragged: integers that are not multiples of 16; all other integers and all pointers are said to be.

    Raises:
        UnsupportedError: what the compiler says, for a target or a kernel that it does not take.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    even = [["tt.divisibility", 16]]
    attributes = {(i,): even for i, (name, kind) in enumerate(signature.items())
                  if kind != "constexpr" and name not in ragged}  # fmt: skip
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    try:
        made = triton.compile(source, target=gpu, options={"num_warps": warps})
    except Exception as error:
        lines = [line for line in f"{error} {error.__cause__ or ''}".splitlines() if line.strip()]
        raise UnsupportedError(
            f"Triton {triton.__version__} does not compile {kernel.__name__} for {target}: "
            f"{type(error).__name__} {lines[-1]}",
            fix="use another kernel or target",
        ) from error
    registers, stack, sass = _machine_code(made.asm["cubin"]) if nvidia else (-1, -1, ())
    return Built(kernel.__name__, target, made.asm["ttgir"], made.asm["ptx" if nvidia else "amdgcn"], sass,
                 registers, stack, made.metadata.shared, warps)  # fmt: skip


def _machine_code(cubin: bytes) -> tuple[int, int, tuple[tuple[int, str], ...]]:
    tool = _TOOLS / "cuobjdump"
    if not tool.exists():
        return -1, -1, ()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run(tool, "-res-usage", file.name)
        text = _run(tool, "-sass", file.name)
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    registers, stack = map(int, found.groups()) if found else (-1, -1)
    return registers, stack, tuple((int(address, 16), code) for address, code in lines)


def _run(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout
