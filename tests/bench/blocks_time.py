"""Seconds and memory of learning, by the number of blocks: ``python -m tests.bench.blocks_time``.

A stack of feed-forward blocks with random weights, LWC and LET at W4A4, each count in a process of its own. Prints a
table for ``docs/learning.md``. About a minute on one core; ``tests/learn/test_cost.py`` counts the work instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import torch

from qpass.learn.settings import Learning
from qpass.methods import make
from qpass.methods.together import solve_together
from tests.learn.test_cost import stack

COUNTS = (3, 6, 12, 24)


def cell(layers: int, width: int, rows: int, batches: int, steps: int, mib: float, send: Any) -> None:
    """One run."""
    torch.set_num_threads(1)
    with torch.no_grad():
        program, weights = stack(width, layers, rows)
    data = [torch.randn(rows, width) for _ in range(batches)]
    settings = Learning(steps=steps, cache_mib=mib, progress=False)
    began, clock = time.process_time(), time.perf_counter()
    solve_together([make("lwc"), make("let")], settings, program, lambda: data)
    seconds, wall = time.process_time() - began, time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    send.send((seconds, wall, peak, weights / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 256), ("rows", 512), ("batches", 4), ("steps", 16), ("cache_mib", 4)):
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=int, default=value)
    parser.add_argument("--counts", metavar="N", type=int, nargs="+", default=COUNTS, help="of blocks")
    args = parser.parse_args()
    print("| blocks | processor seconds | a block | wall seconds | peak MiB | weights, MiB |")
    print("|---|---|---|---|---|---|")
    spawn = multiprocessing.get_context("spawn")
    for layers in args.counts:
        receive, send = spawn.Pipe(duplex=False)
        given = (layers, args.width, args.rows, args.batches, args.steps, args.cache_mib, send)
        child = spawn.Process(target=cell, args=given)
        child.start()
        send.close()
        seconds, wall, peak, weights = receive.recv()
        child.join()
        row = f"{layers} | {seconds:.1f} | {seconds / layers:.2f} | {wall:.1f} | {peak:.0f} | {weights:.1f}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
