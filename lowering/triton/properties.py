"""What of a compiled kernel decides its speed, as numbers that a test can hold to a budget. Needs no GPU."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from qpass.lowering.triton.compile_only import Built

_MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async)[.\w:]*")
_AMD_MATRIX = re.compile(r"\bv_mfma_\w+")


@dataclass(frozen=True)
class Properties:
    """Of one kernel.

    Attributes:
        matrix: the matrix instructions, by their names in PTX or AMD's assembly.
        conversions: layout conversions of tensors of two dimensions in the main loop (weights, inputs, sums).
        allocations: copies to shared memory in the main loop that no pipeline made.
        words: words unpacked in assembly, and how many of them come straight from a 16-byte load.
        copies: asynchronous copies to shared memory by their size in bytes, in hexadecimal, as PTX has it.
        loop: instructions of the main loop, by mnemonic; empty without a disassembler.
    """

    matrix: frozenset[str]
    conversions: int
    allocations: int
    words: tuple[int, int]
    copies: Counter[str]
    loop: Counter[str]

    @property
    def instructions(self) -> int:
        """In the main loop, of one warp."""
        return sum(self.loop.values())

    def per_weight(self, weights: int, built: Built) -> float:
        """Instructions that one thread issues for each weight, of a loop that does ``weights`` of them a round."""
        return self.instructions / (weights / (32 * built.warps))

    @property
    def spills(self) -> int:
        """Accesses to local memory in the main loop."""
        return sum(count for name, count in self.loop.items() if name.startswith(("LDL", "STL")))


def properties(built: Built) -> Properties:
    """Read from the texts of a compiled kernel."""
    pattern = _MATRIX if built.target.startswith("sm_") else _AMD_MATRIX
    body = loop_of(built.ttgir)
    return Properties(
        matrix=frozenset(pattern.findall(built.assembly)),
        conversions=len([line for line in body if "ttg.convert_layout" in line and _is_tile(line)]),
        allocations=len([line for line in body if re.search(r"ttg\.local_alloc %", line)]),
        words=_words(built.assembly),
        copies=Counter(
            re.findall(
                r"cp\.async\.\w+\.shared\.global(?:\.\w+::\w+)? *\[[^\]]*\], *\[[^\]]*\], *(\w+)", built.assembly
            )
        ),
        loop=main_loop(built.sass),
    )


def loop_of(ttgir: str) -> list[str]:
    """The lines of the loop of Triton's GPU dialect that has a dot in it."""
    lines = ttgir.splitlines()
    for first, line in enumerate(lines):
        if "scf.for" not in line:
            continue
        indent = len(line) - len(line.lstrip())
        last = next(i for i in range(first + 1, len(lines))
                    if lines[i].strip() and len(lines[i]) - len(lines[i].lstrip()) <= indent)  # fmt: skip
        body = lines[first + 1 : last]
        if any(re.search(r"\b(?:tt\.dot|warp_group_dot) %", text) for text in body):
            return body
    return []


def _is_tile(line: str) -> bool:
    """Whether the result of a line has two dimensions greater than one."""
    found = re.findall(r"tensor<((?:\d+x)+)", line)
    return bool(found) and sum(int(size) > 1 for size in found[-1].rstrip("x").split("x")) > 1


def main_loop(sass: tuple[tuple[int, str], ...]) -> Counter[str]:
    """Mnemonics of the largest loop with a matrix instruction: the target of a backward branch, up to the branch."""
    best: Counter[str] = Counter()
    for address, text in sass:
        found = re.search(r"\bBRA(?:\.\w+)*\s+(?:\w+,\s*)?`?\(?(?:\.L_x_\d+\)?|)(0x[0-9a-f]+)?", text)
        if not found or not found[1] or int(found[1], 16) >= address:
            continue
        body = [code for at, code in sass if int(found[1], 16) <= at <= address]
        if any("MMA" in code for code in body) and len(body) > sum(best.values()):
            best = Counter(re.sub(r"^@!?U?P\w+\s+", "", code).split()[0] for code in body)
    return best


def _words(ptx: str) -> tuple[int, int]:
    """(words that inline assembly unpacks, those that are destinations of a 16-byte load).

    Which register of a load feeds which block is decided by Triton's undocumented order of registers: where it is
    another one, the words are put together from several loads, and a decoder that moves codes between the bytes of a
    word would be wrong.
    """
    wide = {name for line in ptx.splitlines() if re.search(r"\bld\.(?:shared|global)\S*\.v4\.(?:b|u)32", line)
            for name in re.findall(r"%r\d+", line.partition("[")[0])}  # fmt: skip
    blocks = re.findall(r"// begin inline asm\n(.*?)// end inline asm", ptx, re.S)
    taken = r"(?:shr\.u32|shl\.b32|and\.b32) \w+, (%r\d+),"  # into a register of the block's own
    words = [word for block in blocks for word in dict.fromkeys(re.findall(taken, block))]
    return len(words), sum(word in wide for word in words)
