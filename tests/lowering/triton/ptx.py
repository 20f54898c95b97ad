"""Runs the straight-line PTX of a decoder on 32-bit words, to test the text that is really compiled."""

from __future__ import annotations

import re

import numpy as np

Words = np.ndarray


def inline_blocks(ptx: str) -> list[str]:
    """The decoders in a compiled kernel: the blocks of inline assembly with registers of their own."""
    code = re.sub(r"^\s*\.loc\s.*\n", "", ptx, flags=re.M)  # Triton 3.9 says the source of each line in a block too
    blocks = re.findall(r"// begin inline asm\n(.*?)// end inline asm", code, re.S)
    return [block for block in blocks if ".reg .b32" in block]


def operands(block: str) -> tuple[list[str], list[str]]:
    """(registers written, registers read before they are written), without the block's own."""
    local = set(re.findall(r"\w+", "".join(re.findall(r"\.reg \.b32 ([^;]*);", block))))
    written: list[str] = []
    read: list[str] = []
    for _, target, *sources in _instructions(block):
        for source in sources:
            if source.startswith("%") and source not in written and source not in read:
                read.append(source)
        if target not in local and target not in written:
            written.append(target)
    return written, read


def run(block: str, inputs: dict[str, Words]) -> dict[str, Words]:
    """All registers after the block, from those before it."""
    registers = {name: value.astype(np.uint32) for name, value in inputs.items()}

    def value(text: str) -> Words:
        return registers[text] if text in registers else np.uint32(int(text, 0))

    for name, target, *sources in _instructions(block):
        registers[target] = _compute(name, [value(source) for source in sources])
    return registers


def _instructions(block: str) -> list[list[str]]:
    found = []
    for line in re.split(r";", block.replace("{", "").replace("}", "")):
        if line.strip() and not line.strip().startswith(".reg"):
            name, rest = line.strip().split(None, 1)
            found.append([name, *(part.strip() for part in rest.split(","))])
    return found


def _compute(name: str, v: list[Words]) -> Words:
    if name == "fma.rn.bf16x2":
        return _fma(*v)
    if name == "prmt.b32":
        return _permute(*v)
    if name == "lop3.b32":
        assert int(v[3]) == 0xEA  # (a & b) | c
        return (v[0] & v[1]) | v[2]
    simple = {
        "mov.b32": lambda a: a, "shr.u32": lambda a, b: a >> b, "shl.b32": lambda a, b: a << b,
        "and.b32": lambda a, b: a & b, "add.u32": lambda a, b: a + b, "xor.b32": lambda a, b: a ^ b,
    }  # fmt: skip
    with np.errstate(over="ignore"):
        return np.asarray(simple[name](*v), dtype=np.uint32)


def _permute(low: Words, high: Words, selector: Words) -> Words:
    both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    result = np.zeros(np.broadcast(low, selector).shape, np.uint32)
    for byte in range(4):
        nibble = (selector >> np.uint32(4 * byte)) & np.uint32(15)
        assert (nibble < 8).all()  # the top bit would spread a sign
        picked = (both >> (nibble.astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        result |= picked.astype(np.uint32) << np.uint32(8 * byte)
    return result


def _fma(a: Words, b: Words, c: Words) -> Words:
    result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
    for half in (0, 16):
        x, y, z = (bf16((value >> np.uint32(half)) & np.uint32(0xFFFF)).astype(np.float64) for value in (a, b, c))
        exact = (x * y + z).astype(np.float32)
        bits = exact.view(np.uint32)
        assert not (bits & np.uint32(0xFFFF)).any()  # the result is a bfloat16: nothing is rounded
        result |= (bits >> np.uint32(16)) << np.uint32(half)
    return result


def bf16(bits: Words) -> Words:
    """float32 values of 16-bit patterns."""
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)
