"""Keeps the raw numbers in ``docs/benchmarks/cpu.json`` and makes the tables of ``docs/benchmarks/cpu.md``."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from .variants import BASELINE, SIZES, VARIANTS, WORKLOADS

# Outputs that have nothing to do with each other come to 1.4. A linear of 4 bits on Gaussian weights is 0.115 off, one
# of 8 bits and inputs 0.012; through the 154 linears of the 1b model that grows eightfold, to 0.7 and to 0.1.
WRONG = 1.0
CLOCKS = {True: (time.thread_time, "processor time"), False: (time.perf_counter, "wall")}
"""By whether there is one thread: what measures, and its name."""
FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
PAGE = """# Speed and memory on a CPU

Made by `python -m tests.bench.cpu`; raw samples are in `cpu.json`. Do not edit.

Each cell is tokens per second (median) and, in brackets, how many times the speed of **{baseline}**, eager PyTorch in
bfloat16, measured in the same rounds in the same process: the ratio is the median over the rounds, and it is the
number to compare across rows of one table; each table is one machine. Where several set-ups do the same arithmetic,
**bold** marks the best for a workload, and that one is the peer.

- decode: one token a step, after 128 tokens of context on average, batch 1 and 8. Only the forward calls are timed.
- prefill: 512 tokens into an empty cache, one row of logits kept.
- Peers are compiled with static shapes, once for each workload; for decode they have a static KV cache, which was
  faster for them than a growing one.
- Weights: parameters and buffers of the module. What Inductor repacks when it freezes comes on top, see "run memory":
  memory added at the peak of compiling and running the first workload.
- Before it is timed, each variant's logits are compared with the baseline's. **wrong** and a number in place of a speed
  is their relative error (Frobenius norm) where it is above {limit}: such a variant computes something else, and its
  speed is not a result. (With torchao 0.18.0 and torch 2.13.0 that is int8 with dynamic activations, compiled, for one
  row, on the Xeon with AMX; eager, compiled for more rows, and on the EPYC without AMX it is right.)
- clock: with one thread, seconds are processor time of that thread, which other work on the machine does not lengthen;
  rows that do not say so were taken with the wall clock.
- compile: seconds until the first result for the decode step at batch 1, less the time of a warm step. For qpass, of
  `qpass.compile`, which exports the model and serves every workload (some of it may come from Inductor's cache), with
  the making of the random model.
- torchao and qpass leave a head alone that shares its weight with the embedding; the small model has such a head, the
  others do not. 4 bits: groups of {groups}.
"""


def save(model: str, records: list[dict], *, threads: int) -> None:
    """Put the records of one run into the JSON file, in place of this machine's older ones for the same row and column.

    The file: model, machine (:func:`machine_name`), ``variant workload``, record.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "cpu.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    machine = describe_machine(threads)
    table = kept.setdefault(model, {}).setdefault(machine_name(machine), {})
    for record in records:
        table[f"{record['variant']} {record['workload']}"] = record | {"machine": machine}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    (FOLDER / "cpu.md").write_text(page(kept))


def machine_name(machine: dict[str, str]) -> str:
    """What tells tables apart: the processor, the widest instructions of it that matter here, and the threads."""
    flags = machine["flags"].split()
    widest = next((name for flag, name in _WIDEST if flag in flags), "AVX2 or less")
    cpu = machine["cpu"].removesuffix(" Processor").replace("(R)", "")
    return f"{cpu}, {widest}, threads: {machine['threads']}"


_WIDEST = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16"), ("avx512_vnni", "AVX512-VNNI"), ("avx512f", "AVX-512"))


def describe_machine(threads: int) -> dict[str, str]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [f for f in fields.get("flags", "").split() if f.startswith(("amx", "avx512f", "avx_vnni"))]
    flags += [f for f in fields.get("flags", "").split() if f in ("avx2", "avx512_vnni", "avx512_bf16", "avx512_fp16")]
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": " ".join(sorted(flags)),
        "threads": str(threads),
        "clock": CLOCKS[threads == 1][1],
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchao", "transformers")},
        "date": datetime.date.today().isoformat(),
    }


def page(kept: dict) -> str:
    groups = ", ".join(f"{size.group} ({name})" for name, size in SIZES.items())
    parts = [PAGE.format(baseline=BASELINE, groups=groups, limit=WRONG)]
    parts += [_section(name, kept[name]) for name in SIZES if name in kept]
    return "\n".join(parts)


def _section(model: str, tables: dict) -> str:
    parts = [_table(name, tables[name]) for name in sorted(tables)]
    return "\n".join([f"## {model}", "", _describe(model), "", *parts])


def _table(name: str, table: dict) -> str:
    machines = sorted({tuple(sorted(r["machine"].items())) for r in table.values()})
    loads = [r["load"] for r in table.values()]
    lines = [f"### {name}", ""]
    lines += [f"- {', '.join(f'{k} {v}' for k, v in machine)}" for machine in machines]
    lines += [f"- load average while it ran: {min(loads):.1f} to {max(loads):.1f}; more than the threads is other work"]
    heads = ["variant", *(w.name for w in WORKLOADS), "weights, MiB", "run memory, MiB", "compile, s"]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    best = _best(table)
    lines += [_row(name, table, best) for name in VARIANTS if any(f"{name} {w.name}" in table for w in WORKLOADS)]
    return "\n".join(lines) + "\n"


def _describe(model: str) -> str:
    config = SIZES[model].config
    if config is None:
        return "The Llama that qpass ships: hidden 256, 6 layers, trained weights."
    return "A Llama of random weights: " + ", ".join(f"{k} {v}" for k, v in config.items()) + "."


def _best(table: dict) -> set[str]:
    """Keys of the fastest set-up of each family and workload."""
    best: dict[tuple[str, str], dict] = {}
    for record in filter(_right, table.values()):
        place = (VARIANTS[record["variant"]].family, record["workload"])
        if place not in best or record["ratio"] > best[place]["ratio"]:
            best[place] = record
    return {f"{r['variant']} {r['workload']}" for r in best.values()}


def _row(name: str, table: dict, best: set[str]) -> str:
    keys = [f"{name} {w.name}" for w in WORKLOADS]
    cells = [_cell(table[key], key in best) if key in table else "" for key in keys]
    record = next(table[key] for key in keys if key in table)
    memory = [f"{record[k] / 2**20:.0f}" for k in ("weight_bytes", "run_peak_bytes")]
    seconds = record["compile_s"] + (record["build_s"] if VARIANTS[name].is_qpass else 0.0)
    return "| " + " | ".join([name, *cells, *memory, f"{seconds:.1f}"]) + " |"


def _right(record: dict) -> bool:
    return record["error"] <= WRONG  # false for NaN too


def _cell(record: dict, best: bool) -> str:
    if not _right(record):
        return f"**wrong** {record['error']:.2g}"
    text = f"{record['tokens_per_s']:,.{1 if record['tokens_per_s'] < 100 else 0}f} ({record['ratio']:.2f}x)"
    return f"**{text}**" if best else text
