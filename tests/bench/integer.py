"""Speed of integer-only programs beside W8A8 with float scales and beside float: ``python -m tests.bench.integer``.

All variants live in one process and take turns; a ratio is the median over the rounds of two speeds of one round. With
one thread, seconds are processor time of that thread, which other work on the machine does not lengthen. Results are
kept in ``docs/benchmarks/integer.json``, and ``docs/benchmarks/integer.md`` is made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import qpass

from . import report
from .variants import SIZES, VARIANTS, WORKLOADS, Size, Workload, _float_model, build, prepare

INTEGER = ("int-only-w8a8", "int-only-w4a8")
PEER = "qpass-w8a8"
FLOATS = ("eager-fp32", "inductor-fp32", "eager-bf16")
SHARES = 8
PAGE = """# Speed of integer-only programs on a CPU

Made by `python -m tests.bench.integer`; raw samples are in `integer.json`. Do not edit.

Tokens per second (median of the rounds), and how many times the speed of **{peer}**, qpass's own W8A8 with float
scales, of the same round in the same process. Workloads and machines are described as in [cpu.md](cpu.md). An
integer-only program quantizes the head too, and its embedding has 16 bits; {peer} leaves a head alone that shares its
weight with the embedding. "where the time goes" is of one call (a decode step, a prompt) of `int-only-w8a8`, by
operator, milliseconds; "calls between" is Python, allocation, and what Inductor compiles. It was measured with a
profiler, on the wall clock: the share counts.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.integer", description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of variants", default=[*INTEGER, PEER, *FLOATS])
    parser.add_argument("--workloads", nargs="+", choices=[w.name for w in WORKLOADS])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    size, clock = SIZES[args.model], report.CLOCKS[args.threads == 1][0]
    models = {name: _build(name, size) for name in args.only}
    for workload in WORKLOADS:
        if not args.workloads or workload.name in args.workloads:
            _save(args.model, args.threads, workload.name, _run(models, workload, size, clock, args.rounds))


def _build(name: str, size: Size) -> torch.nn.Module:
    if name in INTEGER:
        return qpass.compile(_float_model(size, torch.float32), name)
    return build(VARIANTS[name], size)


def _run(models: dict, workload: Workload, size: Size, clock: Callable[[], float], rounds: int) -> dict[str, Any]:
    runs = {}
    for name, model in models.items():
        began = time.perf_counter()
        runs[name] = prepare(VARIANTS[PEER if name in INTEGER else name], model, workload, size, clock)[0]
        runs[name]()
        print(f"{workload.name:12} {name:16} ready after {time.perf_counter() - began:.1f} s", flush=True)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
    for name, found in samples.items():
        ratio = median(a / b for a, b in zip(found, samples[PEER]))
        print(f"{workload.name:12} {name:16} {median(found):10.1f} tokens/s {ratio:6.2f}x", flush=True)
    calls = size.steps if workload.length == 1 else 1
    shares = {name: _shares(runs[name], calls) for name in (INTEGER[0], PEER) if name in runs}
    torch._dynamo.reset()
    return {"samples": samples, "shares": shares, "load": os.getloadavg()[0]}


def _shares(run: Callable[[], float], calls: int) -> dict[str, float]:
    """Milliseconds of a call by operator; what is no kernel of qpass is "calls between"."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    times: dict[str, float] = {}
    for event in found.key_averages():
        name = event.key.removeprefix("qpass_cpu::") if event.key.startswith("qpass_cpu::") else "calls between"
        times[name] = times.get(name, 0.0) + event.self_cpu_time_total / 1e3 / calls
    return times


def _save(model: str, threads: int, workload: str, record: dict[str, Any]) -> None:
    path = report.FOLDER / "integer.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    machine = report.describe_machine(threads)
    kept.setdefault(model, {}).setdefault(report.machine_name(machine), {})[workload] = record | {"machine": machine}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    (report.FOLDER / "integer.md").write_text(_page(kept))


def _page(kept: dict[str, Any]) -> str:
    parts = [PAGE.format(peer=PEER)]
    for model in (name for name in SIZES if name in kept):
        for machine, records in sorted(kept[model].items()):
            parts.append(f"## {model}: {machine}\n")
            facts = sorted({tuple(sorted(record["machine"].items())) for record in records.values()})
            parts += ["- " + ", ".join(f"{key} {value}" for key, value in fact) for fact in facts]
            parts.append("\n" + _speeds(records))
            parts += [_times(name, records[name]) for name in records]
    return "\n".join(parts)


def _speeds(records: dict[str, Any]) -> str:
    names = list(next(iter(records.values()))["samples"])
    lines = ["| variant | " + " | ".join(records) + " |", "|---" * (len(records) + 1) + "|"]
    for name in names:
        cells = []
        for record in records.values():
            found = record["samples"].get(name)
            ratio = median(a / b for a, b in zip(found, record["samples"][PEER])) if found else 0
            cells.append(f"{median(found):,.1f} ({ratio:.2f}x)" if found else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _times(workload: str, record: dict[str, Any]) -> str:
    lines = [f"{workload}, where the time goes:", ""]
    for name, times in record["shares"].items():
        first = sorted(times.items(), key=lambda item: -item[1])[:SHARES]
        total = sum(times.values())
        lines.append(f"- {name}: " + ", ".join(f"{op} {ms:.3g} ms ({ms / total:.0%})" for op, ms in first))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
