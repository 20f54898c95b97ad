"""Speed and memory on a CPU, beside eager PyTorch, Inductor and torchao: ``python -m tests.bench.cpu --model small``.

All variants of a run live in one process and take turns, so that a drift of the machine touches each of them; what
counts is the ratio to the float baseline of the same turn. On a machine that does other work as well, set
OMP_WAIT_POLICY=PASSIVE (waiting threads then sleep and do not take the core from the one they wait for) or --threads 1;
both are in the table's description of the machine. With one thread, seconds are processor time, which other work does
not lengthen. Results are kept in ``docs/benchmarks/cpu.json`` (a run replaces what it measured again on the same
machine), and ``docs/benchmarks/cpu.md`` is made from it.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable
from statistics import median

# Read when torchao is imported: it would try to load its GPU kernels, and say at length that it cannot.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

from qpass.debug.evaluate import peak_rss, rss_bytes, weight_bytes  # noqa: E402

from . import report  # noqa: E402
from .variants import BASELINE, SIZES, VARIANTS, WORKLOADS, Size, Variant, Workload, build, prepare  # noqa: E402


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    size = SIZES[args.model]
    names = _names(args)
    groups = [[BASELINE, n] for n in names if n != BASELINE] if size.in_turn else [[BASELINE, *_without_base(names)]]
    for group in groups:
        _run_group(group, size, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cpu", description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, * allowed: " + ", ".join(VARIANTS))
    parser.add_argument("--workloads", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--peers-only", action="store_true", help="leave qpass out")
    parser.add_argument("--autotune", action="store_true", help="also the variants that try C++ templates (minutes)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds in which each variant has its turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _names(args: argparse.Namespace) -> list[str]:
    """The variants to run, in the order of the table."""
    if args.only:
        unknown = [only for only in args.only if not fnmatch.filter(VARIANTS, only)]
        if unknown:
            raise SystemExit(f"no such variant: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
        return [n for n in VARIANTS if any(fnmatch.fnmatchcase(n, only) for only in args.only)]
    return [
        n for n, v in VARIANTS.items() if not (args.peers_only and v.is_qpass) and (args.autotune or not v.autotune)
    ]


def _without_base(names: list[str]) -> list[str]:
    return [name for name in names if name != BASELINE]


def _run_group(names: list[str], size: Size, args: argparse.Namespace) -> None:
    """Build the variants of a group, run each workload over all of them, and free them."""
    torch._dynamo.reset()
    gc.collect()
    models, facts = {}, {}
    for name in names:
        built = _build(VARIANTS[name], size)
        if built is not None:
            models[name], facts[name] = built
    for workload in WORKLOADS:
        if args.workloads is None or workload.name in args.workloads:
            records = _run_workload(models, facts, workload, size, args)
            # After each workload: a run takes minutes, and one that is interrupted keeps what it has.
            report.save(args.model, records, threads=args.threads)


def _build(variant: Variant, size: Size) -> tuple[torch.nn.Module, dict] | None:
    before, began = rss_bytes(), time.perf_counter()
    try:
        with peak_rss() as peak:
            model = build(variant, size)
    except Exception:
        return _say_failed(variant.name, "build")
    gc.collect()
    facts = {
        "build_s": time.perf_counter() - began,
        "weight_bytes": weight_bytes(model),
        "build_peak_bytes": peak.bytes - before,
    }
    return model, facts


def _run_workload(
    models: dict, facts: dict, workload: Workload, size: Size, args: argparse.Namespace
) -> list[dict]:
    """Compile each model for the workload, then let them take turns. Compiled code is dropped at the end."""
    runs, ready = {}, {}
    clock = report.CLOCKS[args.threads == 1][0]
    want = prepare(VARIANTS[BASELINE], models[BASELINE], workload, size, clock)[1]()
    for name, model in models.items():
        prepared = _prepare(VARIANTS[name], model, workload, size, clock, want)
        if prepared is not None:
            runs[name], ready[name] = prepared
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            samples[name].append(run())
    records = [
        facts[name] | ready[name] | _record(name, workload, samples[name], samples[BASELINE]) for name in runs
    ]
    for r in records:
        speed = f"{r['tokens_per_s']:10.1f} tokens/s  {r['ratio']:6.2f}x"
        print(f"{workload.name:12} {r['variant']:32} {speed}", flush=True)
    runs.clear()
    torch._dynamo.reset()
    gc.collect()
    return records


def _prepare(
    variant: Variant, model: torch.nn.Module, workload: Workload, size: Size, clock: Callable[[], float],
    want: torch.Tensor,
):  # fmt: skip
    """The sampler after two warm-up calls, the seconds and bytes of its compilation, and how far its logits are off.

    ``error`` is relative to the baseline's logits ``want`` [batch, vocabulary], in the Frobenius norm: a fast wrong
    answer is not a result.
    """
    before = rss_bytes()
    try:
        with peak_rss() as peak:
            run, logits = prepare(variant, model, workload, size, clock)
            first, second = (_seconds(run) for _ in range(2))
        error = ((logits() - want).norm() / want.norm()).item()
    except Exception:
        return _say_failed(variant.name, workload.name)
    facts = {"compile_s": max(first - second, 0.0), "run_peak_bytes": peak.bytes - before, "error": error}
    print(f"{workload.name:12} {variant.name:32} ready after {first:.1f} s, error {error:.3g}", flush=True)
    return run, facts


def _record(name: str, workload: Workload, samples: list[float], baseline: list[float]) -> dict:
    """``ratio`` is the median over the rounds of the speed over the baseline's speed in the same round."""
    return {
        "variant": name,
        "workload": workload.name,
        "tokens_per_s": median(samples),
        "ratio": median(a / b for a, b in zip(samples, baseline)),
        "samples": samples,
        "baseline_samples": baseline,
        "load": os.getloadavg()[0],
    }


def _seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _say_failed(name: str, what: str) -> None:
    """A variant that does not run is a line of the output and is absent from the tables; the others go on."""
    last = traceback.format_exc().strip().splitlines()[-1]
    print(f"{what:12} {name:32} FAILED: {last[:300]}", flush=True)


if __name__ == "__main__":
    main()
