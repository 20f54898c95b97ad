"""Milliseconds of the CPU kernels against every alternative in torch, with cold weights.

One process; each round runs every variant once and takes the next copy of the weights, so that no variant finds them
in a cache and all of them see the same noise. Reports medians and, per row, the best of torch over ours.

    python tests/bench/kernels_cpu.py [--rounds 15] [--shapes 2048x5632,4096x4096] [--rows 1,8,512] [--only int8]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from qpass.lowering.cpu import kernels

GROUP = 128
CACHE_BYTES = 220 << 20
Call = Callable[[], object]


class Layer:
    """One copy of a layer's weights in every format."""

    def __init__(self, k: int, n: int) -> None:
        self.n = n
        codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        nibbles = torch.randint(0, 16, (n, k), dtype=torch.uint8)
        self.packed, self.sums = kernels.pack_int8(codes)
        self.packed4 = kernels.pack_int4(nibbles)
        self.scale, self.scale16 = torch.rand(n), torch.rand(n).bfloat16()
        self.groups = torch.rand(k // GROUP, n).bfloat16()
        self.codes, self.transposed = codes, codes.t()
        self.fp32, self.bf16 = torch.randn(n, k), torch.randn(n, k).bfloat16()
        self.mkldnn = torch.ops.mkldnn._reorder_linear_weight(self.bf16)
        self.onednn = torch.ops.onednn.qlinear_prepack(codes, None)
        self.zeros = torch.zeros(n, dtype=torch.int32)
        self.int4 = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.int(), 1)
        self.int4_scales = torch.rand(k // GROUP, n, 2).bfloat16()


class Rows:
    """Activations in every format."""

    def __init__(self, m: int, k: int) -> None:
        self.m = m
        self.fp32 = torch.randn(m, k)
        self.bf16 = self.fp32.bfloat16()
        self.codes = torch.randint(0, 256, (m, k), dtype=torch.uint8)
        self.scale, self.zero = torch.rand(m, 1), torch.full((m, 1), 128, dtype=torch.int32)


def ours(x: Rows, w: Layer) -> dict[str, Call]:
    ops, bf16 = torch.ops.qpass_cpu, torch.bfloat16
    return {
        "q int8": lambda: ops.int8_linear(x.codes, x.scale, x.zero, w.packed, w.scale, w.sums, None, w.n, bf16),
        "q int4": lambda: ops.int4_linear(x.bf16, w.packed4, w.groups, None, None, w.n, GROUP, bf16),
        "q w8a16": lambda: ops.int8_weight_linear(x.bf16, w.packed, w.scale, None, w.n, bf16),
    }


def theirs(x: Rows, w: Layer) -> dict[str, Call]:
    ops, bf16 = torch.ops, torch.bfloat16
    return {
        "bf16": lambda: torch.mm(x.bf16, w.bf16.t()),
        "bf16 pre": lambda: ops.mkldnn._linear_pointwise(x.bf16, w.mkldnn, None, "none", [], ""),
        "fp32": lambda: torch.mm(x.fp32, w.fp32.t()),
        "_int_mm": lambda: torch._int_mm(x.codes, w.transposed),
        "qlinear": lambda: ops.onednn.qlinear_pointwise(
            x.codes, 0.1, 128, w.onednn, w.scale, w.zeros, None, 1.0, 0, bf16, "none", [], ""
        ),
        "int8pack": lambda: ops.aten._weight_int8pack_mm(x.bf16, w.codes, w.scale16),
        "int4pack": lambda: ops.aten._weight_int4pack_mm_for_cpu(x.bf16, w.int4, GROUP, w.int4_scales),
    }


RIVALS = {
    "q int8": ("bf16", "bf16 pre", "_int_mm", "qlinear"),
    "q int4": ("bf16", "bf16 pre", "int4pack"),
    "q w8a16": ("bf16", "bf16 pre", "int8pack"),
}


def measure(m: int, k: int, layers: list[Layer], rounds: int) -> dict[str, float]:
    """Medians; with one thread of its processor time, which a busy machine does not inflate."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    x = Rows(m, k)
    times: dict[str, list[float]] = {}
    skip: set[str] = set()
    for i in range(rounds + 1):
        layer = layers[i % len(layers)]
        for name, call in {**ours(x, layer), **theirs(x, layer)}.items():
            if name in skip:
                continue
            start = clock()
            try:
                call()
            except RuntimeError:
                skip.add(name)
                continue
            spent = (clock() - start) * 1e3
            if i:  # the first round pays for primitives and thread pools
                times.setdefault(name, []).append(spent)
            if spent > 60 and len(times.get(name, ())) >= 2:
                skip.add(name)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default="2048x5632,2048x2048,4096x4096")
    parser.add_argument("--rows", default="1,2,4,8,16,32,128,512")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    kernels.load()
    print(f"isa {kernels.isa()}, {torch.get_num_threads()} threads, medians of {args.rounds}, ms; group {GROUP}")
    names = [*RIVALS, "bf16", "bf16 pre", "fp32", "_int_mm", "qlinear", "int8pack", "int4pack"]
    head = " ".join(f"{name:>8}" for name in names)
    print(f"{'KxN':>10} {'M':>4} {head}   best of torch / ours: int8 int4 w8a16")
    for shape in args.shapes.split(","):
        k, n = map(int, shape.split("x"))
        layers = [Layer(k, n) for _ in range(min(40, max(2, CACHE_BYTES // (k * n * 9) + 1)))]
        for m in map(int, args.rows.split(",")):
            got = measure(m, k, layers, args.rounds)
            cells = " ".join(f"{got[name]:8.3f}" if name in got else f"{'-':>8}" for name in names)
            ratios = " ".join(
                f"{min(got[r] for r in rivals if r in got) / got[name]:6.2f}" for name, rivals in RIVALS.items()
            )
            print(f"{shape:>10} {m:>4} {cells}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
