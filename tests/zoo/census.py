"""``python -m tests.zoo.census FILE``: what builds, what is captured, and the ops of the NORMAL graphs.

FILE gets one JSON line per architecture and is taken up where it ended; FILE.txt gets the tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qpass.graph.program import Program
from qpass.graph.show import show
from qpass.graph.values import op_name
from tests.zoo.build import build, capture, flat_inputs
from tests.zoo.child import in_child, one_line
from tests.zoo.names import architectures

RARE = 5


def examine(name: str, graphs: str, dynamic: bool) -> dict[str, Any]:
    """The record of one architecture."""
    start = time.perf_counter()
    record: dict[str, Any] = {"built": False, "float64": None, "captured": False}
    try:
        model, args, kwargs = build(name)
        want = outputs(model, args, kwargs)
        record |= {"built": True, "class": type(model).__name__, "degenerate": degenerate(want[0])}
        record["idle"] = idle_experts(model, args, kwargs)
        record["float64"] = in_double(model, args, kwargs, want[0])
        start = time.perf_counter()
        program = capture(model, args, kwargs, dynamic=dynamic)
        record |= {"seconds": time.perf_counter() - start, "dynamic": bool(program.dims)}
        record["notes"] = list(program.call.notes)
        got = pytree.tree_leaves(program.call.unflatten(program.run(*flat_inputs(program, args, kwargs))))
        got = [value for value in got if isinstance(value, Tensor)]
        record["error"] = max(relative(one, two) for one, two in zip(got, want, strict=True))
        record |= {"captured": record["error"] < 1e-5, "reason": "" if record["error"] < 1e-5 else "differs from eager"}
        record |= facts(program)
        if graphs:
            Path(graphs, f"{name}.txt").write_text(show(program, fold=False))
    except BaseException as error:
        record |= {"reason": one_line(error), "seconds": time.perf_counter() - start}
    return record


@torch.no_grad()
def outputs(model: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that the model returns."""
    return [value for value in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(value, Tensor)]


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    if not want.numel():
        return 0.0
    scale = float(want.double().abs().max()) or 1.0
    return float((got.double() - want.double()).abs().max()) / scale


def degenerate(logits: Tensor) -> str:
    """What is wrong with an output: not finite, or the same for every token."""
    if not bool(torch.isfinite(logits).all()):
        return "not finite"
    rows = logits.flatten(0, -2) if logits.dim() > 1 else logits[:, None]
    return "" if float((rows - rows[:1]).abs().max()) > 0.01 * float(rows.abs().max()) else "the same for every token"


def idle_experts(model: Any, args: Any, kwargs: Any) -> dict[str, list[int]]:
    """The experts that no token of the example goes to, by module."""
    idle: dict[str, list[int]] = {}

    def hook(name: str) -> Any:
        def seen(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            for value in (*given, *named.values()):
                if isinstance(value, Tensor) and not value.is_floating_point():
                    left = set(range(module.num_experts)) - set(value.flatten().tolist())
                    idle[name] = sorted(set(idle.get(name, left)) & left)
        return seen

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in model.named_modules()
               if type(module).__name__.endswith("Experts") and hasattr(module, "num_experts")]
    outputs(model, args, kwargs)
    for handle in handles:
        handle.remove()
    return {name: left for name, left in idle.items() if left}


def in_double(model: Any, args: Any, kwargs: Any, want: Tensor) -> str:
    """'' if the model runs in float64 and means the same, else why not."""
    try:
        got = outputs(copy.deepcopy(model).double(), args, kwargs)[0]
    except Exception as error:
        return one_line(error)
    error = relative(want, got)
    if error > 1e-4:
        return f"float32 is {error:.1e} away"
    return "" if got.dtype == torch.float64 else f"ends in {got.dtype}"


def facts(program: Program) -> dict[str, Any]:
    """What the tables are made of."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    ops = Counter(op_name(node.target) for node in nodes)
    casts = Counter(str(node.meta["val"].dtype) for node in nodes
                    if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point())
    return {"nodes": len(nodes), "ops": dict(ops), "params": len(program.params), "dtypes": dict(casts)}


def tables(records: dict[str, dict[str, Any]]) -> str:
    """The census as text."""
    lines = [f"{sum(r['built'] for r in records.values() if 'built' in r)} built, "
             f"{sum(r.get('float64') == '' for r in records.values())} in float64, "
             f"{sum(bool(r.get('captured')) for r in records.values())} captured, of {len(records)}", ""]
    for name, r in records.items():
        good = "captured" if r.get("captured") else "built" if r.get("built") else "-"
        size = f"{'dynamic' if r.get('dynamic') else 'static'} {r.get('nodes', '')}" if r.get("captured") else ""
        lines.append(f"{name:26} {good:9} {r.get('seconds', 0):6.1f} s {size:13} {r.get('class', '')} "
                     f"{r.get('degenerate') or ''} {'idle ' + str(r['idle']) if r.get('idle') else ''} "
                     f"{'float64: ' + r['float64'] if r.get('float64') else ''} "
                     f"{r.get('reason') or ''}".rstrip())
    return "\n".join([*lines, "", *_ops(records)]) + "\n"


def _ops(records: dict[str, dict[str, Any]]) -> list[str]:
    where: dict[str, list[str]] = defaultdict(list)
    count: Counter[str] = Counter()
    for name, record in records.items():
        for op, number in record.get("ops", {}).items() if record.get("captured") else ():
            where[op].append(name)
            count[op] += number
    ordered = sorted(where, key=lambda op: (-len(where[op]), op))
    return [f"{op:40} {len(where[op]):4} architectures {count[op]:6} nodes"
            + (f"  {' '.join(where[op])}" if len(where[op]) <= RARE else "") for op in ordered]


def main() -> None:
    """Examine what FILE lacks, then write the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.census", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--graphs", default="", metavar="FOLDER", help="print the NORMAL graphs there")
    parser.add_argument("--static", action="store_true", help="capture with all sizes static")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures, again")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.exists() else []
    records = {record["name"]: record for record in done}
    for name in options.only or (name for name in architectures() if name not in records):
        found = in_child(examine, name, options.graphs, not options.static)
        records[name] = record = {"name": name, **found}
        with options.file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        print(name, "captured" if record.get("captured") else record.get("reason"), flush=True)
    Path(f"{options.file}.txt").write_text(tables(dict(sorted(records.items()))))


if __name__ == "__main__":
    main()
