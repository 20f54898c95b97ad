"""Speed on a GPU: ``python -m tests.bench.gpu --part decode`` and so on, each part below nine minutes.

Ceilings come first, and the page divides by them: what a copy, a dense dot in 16 and 8 bits and an empty kernel reach.
Each linear is timed in a CUDA graph that launches it once for each of several copies of its weight, so that the cache
never holds one; ours and torch's take turns in one process, and times are the median over the turns. Data are
random, never zeros. Before it is timed a linear is compared with float64 of the same quantized operands, and run twice:
results must be equal bit for bit.

    --part NAME    ceilings, decode, prefill, peers, fused, integer, kv, model, package; kept in gpu-h200.json
    --page         write docs/benchmarks/gpu-h200.md from it
    --dry          no GPU: tiny shapes in the interpreter, checks but no times
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from qpass.lowering.cuda import tiles
from qpass.lowering.cuda.kernels import load
from qpass.lowering.cuda.quantize import QUANTIZE
from qpass.lowering.inductor.buckets import our_choices
from qpass.lowering.inductor.modes import options

from .gpu_cases import FORMS, ROWS, SHAPES, TINY, TINY_ROWS, Linear, baselines
from .gpu_integer import FULL, cases
from .gpu_integer import TINY as TINY_LAYER
from .gpu_kv import cases as kv_cases
from .gpu_kv import checked, compiled
from .gpu_model import LAYERS, SCHEMES, WORK, measure_model
from .gpu_package import RECIPES, packaged
from .gpu_page import FILE, write_page
from .gpu_peers import PEERS, peers

BUDGET = 8.5 * 60
SECONDS = {"ceilings": 20, "decode": 1.2, "prefill": 6, "peers": 20, "fused": 4, "integer": 5, "kv": 8, "model": 25,
           "package": 90}
"""Guesses, nothing of it measured: of a whole part for ``ceilings``, else of one case, most of it compiling."""
_PEER_SHAPES, _PEER_ROWS = ("8b gate_up", "8b down"), (1, 16, 64, 2048)
_CACHE = 240 << 20  # bytes of weights that together never lie in the second-level cache


def main() -> None:
    args = _arguments()
    torch.set_grad_enabled(False)
    load()
    if args.dry:
        dry()
    elif args.page:
        write_page()
    elif not torch.cuda.is_available():
        raise SystemExit("no GPU is here: use --dry for the checks, or --page for the page")
    else:
        print(estimate(args))
        start = time.monotonic()
        records = PARTS[args.part](args, lambda: time.monotonic() - start < BUDGET)
        keep(args.part, records)
        write_page()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("--part", choices=PARTS, default="ceilings")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--autotune", action="store_true", help="also bf16 by Inductor's max-autotune (compiles)")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--page", action="store_true")
    return parser.parse_args()


def dry() -> list[dict[str, Any]]:
    """Every format once, tiny, on the CPU: the error and whether runs are equal. Raises if one is off."""
    records = []
    for name, form in FORMS.items():
        for shape in TINY.values():
            for rows in TINY_ROWS:
                linear = Linear(form, shape, rows, 1, "cpu", rows)
                record = {"form": name, "rows": rows, "kernel": linear.kernel.name, "error": linear.error(),
                          "equal": linear.repeats()}  # fmt: skip
                print(record)
                if record["error"] > form.limit or not record["equal"]:
                    raise SystemExit(f"{name}, {rows} rows: {record}")
                records.append(record)
        calls, skipped = peers(name, linear, 1)
        print({"form": name, "peers": sorted(calls), "skipped": skipped})
    records += [_right(name, one) for name, one in cases(TINY_LAYER, 3, "cpu").items()]
    return records + [checked(case) for case in kv_cases("cpu")]


def _right(name: str, one: Any) -> dict[str, Any]:
    record = {"integer": name, "kernel": f"cuda.{one.op}", "equal": one.right()}
    print(record)
    if not record["equal"]:
        raise SystemExit(f"integer {name}: not the bits of {one.op}")
    return record


def estimate(args: argparse.Namespace) -> str:
    """What a part is likely to take. Whatever it takes, no case is begun after ``BUDGET`` seconds."""
    wide = len(args.shapes) * len(args.forms)
    count = {"ceilings": 1, "decode": wide * len(args.rows or ROWS[:4]), "prefill": wide * len(args.rows or ROWS[4:]),
             "peers": len(_PEER_SHAPES) * len(_PEER_ROWS) * len(PEERS), "fused": 6, "integer": 18, "kv": 8,
             "model": len(LAYERS) * len(WORK) * (1 + len(SCHEMES)), "package": len(RECIPES)}[args.part]  # fmt: skip
    guess = count * SECONDS[args.part]
    cut = f", of which about {int(BUDGET / SECONDS[args.part])} fit" if guess > BUDGET else ""
    text = f"{args.part}: {count} cases, about {guess / 60:.1f} minutes by guess{cut}"
    return f"{text}; no case begins after {BUDGET / 60} minutes"


def graph_of(call: Callable[[int], Any], copies: int) -> Callable[[], None]:
    """One launch for each copy, as a graph to replay."""
    for _ in range(2):
        for copy in range(copies):
            call(copy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            call(copy)
    return graph.replay


def microseconds(replay: Callable[[], None], copies: int, *, replays: int = 20) -> float:
    """Of one launch."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replay()
    begin.record()
    for _ in range(replays):
        replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / replays / copies


def in_turn(calls: dict[str, Callable[[int], Any]], copies: int, turns: int) -> dict[str, list[float]]:
    """Microseconds of each by turn; one that cannot run is left out and named."""
    replays = {}
    for name, call in calls.items():
        try:
            replays[name] = graph_of(call, copies)
        except Exception as error:
            print(f"  {name} does not run: {type(error).__name__} {str(error).splitlines()[0][:120]}")
    return {name: [microseconds(replay, copies) for _ in range(turns)] for name, replay in replays.items()}


def ceilings(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """Bytes a second of a copy, FLOP a second of dense dots, and what an empty kernel costs in a graph."""
    size = 8192
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    source.random_()
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    fp8 = [one.to(torch.float8_e4m3fn) for one in (a, b)]
    int8 = [(one * 30).round().clamp(-127, 127).to(torch.int8) for one in (a, b)]
    ones, tiny = torch.ones(size, 1, device="cuda"), torch.zeros(1, device="cuda")
    calls: dict[str, Callable[[int], Any]] = {
        "copy": lambda copy: target.copy_(source), "bf16": lambda copy: a @ b.t(),
        "fp8": lambda copy: torch._scaled_mm(fp8[0], fp8[1].t(), ones, ones.t(), out_dtype=torch.bfloat16),
        "int8": lambda copy: torch._int_mm(int8[0], int8[1].t()), "empty": lambda copy: tiny.add_(0),
    }  # fmt: skip
    work = {"copy": 2.0 * (1 << 30), "empty": 1.0}
    times = in_turn(calls, 1, args.turns)
    return [{"name": name, "us": median(each), "rate": work.get(name, 2.0 * size**3) / median(each) * 1e6}
            for name, each in times.items()]  # fmt: skip


def linears(rows: tuple[int, ...], *, compiled: bool) -> Callable[..., list[dict[str, Any]]]:
    """The part that measures linears with these numbers of rows; ``compiled``: with what Inductor does for it."""

    def part(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
        records = []
        for count in args.rows or rows:
            for shape_name in args.shapes:
                for form_name in args.forms:
                    if not more():
                        print(f"time is up before {shape_name}, {count} rows, {form_name}")
                        return records
                    records.append(one_linear(args, shape_name, form_name, count, compiled=compiled))
                    print(records[-1])
        return records

    return part


def one_linear(args: argparse.Namespace, shape: str, form_name: str, rows: int, *, compiled: bool) -> dict[str, Any]:
    """Error, equality of runs, and times of ours and of torch's."""
    form, (n, k) = FORMS[form_name], SHAPES[shape]
    copies = max(2, -(-_CACHE // int(n * k * form.bits / 8)))
    linear = Linear(form, (n, k), rows, copies, "cuda", seed=rows + n)
    record: dict[str, Any] = {"shape": shape, "n": n, "k": k, "form": form_name, "rows": rows, "bits": form.bits,
                              "eight": form.eight, "error": linear.error(), "limit": form.limit,
                              "equal": linear.repeats()}  # fmt: skip
    ours: Callable[[int], Any] = linear.call
    if compiled:
        run = torch.compile(lambda inputs, packed: linear.kernel.call(inputs, packed, None, linear.case),
                            fullgraph=True, dynamic=False, options=options())  # fmt: skip
        ours = lambda copy: run(linear.inputs, linear.packed[copy])  # noqa: E731
    dense = max(2, min(copies, -(-_CACHE // (2 * n * k))))
    calls = {"ours": ours, **baselines(linear, dense)}
    if args.autotune:
        tuned = torch.compile(torch.nn.functional.linear, mode="max-autotune-no-cudagraphs", dynamic=False)
        calls["max-autotune"] = lambda copy: tuned(linear.x, linear.weight)
    with our_choices():
        record["us"] = in_turn({"ours": calls.pop("ours")}, copies, args.turns)
    record["us"] |= in_turn(calls, dense, args.turns)
    return record


def beside_peers(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """A few shapes beside other libraries: those that are not there are named with the reason."""
    records = []
    for shape in _PEER_SHAPES:
        for rows in args.rows or _PEER_ROWS:
            for form in PEERS:
                if not more():
                    print(f"time is up before {shape}, {rows} rows, {form}")
                    return records
                record = one_linear(args, shape, form, rows, compiled=rows > 64)
                n, k = SHAPES[shape]
                copies = max(2, -(-_CACHE // (2 * n * k)))
                calls, skipped = peers(form, Linear(FORMS[form], (n, k), rows, copies, "cuda", rows + n), copies)
                record["us"] |= in_turn(calls, copies, args.turns)
                records.append({**record, "skipped": skipped})
                print(records[-1])
    return records


def fused(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """Residual, norm and quantize, and SwiGLU and quantize, as Inductor makes them: fraction of a copy's bandwidth."""
    def norm(x: Tensor, residual: Tensor, weight: Tensor) -> Any:
        total = x + residual
        h = total.float() * torch.rsqrt(total.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return total, QUANTIZE.call(weight * h.to(x.dtype), "e4m3:token:sym")[:2]

    def swiglu(gate: Tensor, up: Tensor) -> Any:
        return QUANTIZE.call(torch.nn.functional.silu(gate) * up, "e4m3:token:sym")[:2]

    records = []
    for name, function, width, per_value, operands in (("norm", norm, 4096, 7, 2), ("swiglu", swiglu, 14336, 5, 2)):
        for rows in (256, 2048, 8192):
            inputs = [torch.randn(rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(operands)]
            inputs += [torch.ones(width, device="cuda", dtype=torch.bfloat16)] if name == "norm" else []
            with our_choices():
                run = torch.compile(function, fullgraph=True, dynamic=False)
                times = in_turn({name: lambda copy, run=run, inputs=inputs: run(*inputs)}, 1, args.turns)
            if name in times:
                us = median(times[name])
                records.append({"name": name, "rows": rows, "us": us, "bytes": per_value * rows * width,
                                "rate": per_value * rows * width / us * 1e6})  # fmt: skip
    return records


def integer(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """Kernels of integer-only programs: bits against the meaning, then times and the fraction of a copy's bandwidth."""
    records = []
    for tokens in (1, 16, 512):
        for name, one in cases(FULL, tokens, "cuda").items():
            if not more():
                print(f"time is up before {name}, {tokens} tokens")
                return records
            record = _right(name, one) | {"name": f"integer {name}", "rows": tokens, "bytes": one.bytes}
            with our_choices(), tiles.compiling_for(tiles.bucket_of(tokens)):
                run = torch.compile(one.call, fullgraph=True, dynamic=False, options=options())
                times = in_turn({name: lambda copy, run=run: run()}, 1, args.turns)
            if name in times:
                us = median(times[name])
                records.append(record | {"us": us, "rate": one.bytes / us * 1e6})
    return records


def kv(args: argparse.Namespace, more: Callable[[], bool]) -> list[dict[str, Any]]:
    """Attention over a cache of codes: error, then times beside ATen's over bfloat16, and the rate of its bytes."""
    records = []
    for case in kv_cases("cuda"):
        if not more():
            print(f"time is up before {case.name}")
            return records
        record = checked(case) | {"bytes": case.bytes}
        times = in_turn(compiled(case), 1, args.turns)
        if "ours" in times:
            us = median(times["ours"])
            records.append(record | {"us": us, "rate": case.bytes / us * 1e6, "bf16_us": median(times["bf16"])})
    return records


def keep(part: str, records: list[dict[str, Any]]) -> None:
    """Add the records of a part to the file, in place of older ones of the same kind."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    keys = ("shape", "form", "rows", "name", "what")
    old = [one for one in kept.get(part, [])
           if not any(all(one.get(key) == new.get(key) for key in keys) for new in records)]  # fmt: skip
    kept[part] = old + records
    kept["device"] = {"name": torch.cuda.get_device_name(), "torch": torch.__version__}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


PARTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "ceilings": ceilings,
    "decode": linears(ROWS[:4], compiled=False),
    "prefill": linears(ROWS[4:], compiled=True),
    "peers": beside_peers,
    "fused": fused,
    "integer": integer,
    "kv": kv,
    "model": measure_model,
    "package": packaged,
}

if __name__ == "__main__":
    main()
