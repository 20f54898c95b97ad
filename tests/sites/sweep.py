"""``python -m tests.sites.sweep [--only NAME ...] [--out FILE.json]``: the sites of every text architecture there is.

Each is built tiny, captured and checked, in a process of its own. The table is printed as Markdown; with ``--out`` it
is also written next to FILE.json, which is written anew after each architecture.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qpass.errors import UnsupportedError
from qpass.graph.program import Program
from qpass.passes.raise_ops import raise_ops
from qpass.sites import analyse
from qpass.sites.edits import Fold, apply
from qpass.sites.verify import relative_error, run_in
from tests.zoo import architectures, build, capture, flat_inputs
from tests.zoo.child import in_child, one_line

BOUND = 1e-9
"""On the relative error (Frobenius) of each float64 output. An edit that is wrong is off by 1e-3 or more."""
STATUSES = ("preserved", "refused", "changed", "nothing", "not captured", "not built")


@dataclass
class Outcome:
    """What came of one architecture.

    Attributes:
        status: ``preserved``: all the sites found were rescaled and the outputs stayed; ``changed``: they did not;
            ``refused``: nothing was found and ``reasons`` say why; ``nothing``: there is nothing to find.
        sites: number of sites.
        freedom: number of free scale factors, over all sites.
        error: ``‖after - before‖ / ‖before‖`` of the float64 output that moved most.
        reasons: ops without a rule that a factor met, which kept it out; or why there is no program.
        seconds: wall time of all.
    """

    status: str
    sites: int = 0
    freedom: int = 0
    error: float = 0.0
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0


Check = Callable[[Program, Sequence[Tensor]], Outcome]


def check(program: Program, inputs: Sequence[Tensor]) -> Outcome:
    """Find the sites of a NORMAL program, rescale all of them by random factors, and compare its float64 outputs."""
    program = raise_ops(program)
    try:
        found = analyse(program, smooth=True)
    except UnsupportedError as error:
        return Outcome("refused", reasons=[one_line(error)])
    reasons = sorted({f"no rule: {op.split(',')[0]}" for op in found.unknown.values()})
    if not found.sites:
        return Outcome("refused" if found.refused or reasons else "nothing", reasons=reasons)
    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(site.size, generator=generator, dtype=torch.float64) * 1.5 + 0.25 for site in found.sites]
    after = apply(program, [Fold(site, scale) for site, scale in zip(found.sites, scales)])
    before, again, now = (run_in(each, torch.float64, *inputs) for each in (program, program, after))
    if any(isinstance(one, Tensor) and not torch.equal(one, two) for one, two in zip(before, again)):
        return Outcome("not captured", reasons=["two runs of the captured program differ: it draws random numbers"])
    error = max(relative_error(one, two) for one, two in zip(before, now) if isinstance(one, Tensor))
    status = "preserved" if error < BOUND else "changed"
    return Outcome(status, len(found.sites), found.freedom, error, reasons)



def outcome(name: str, checked: Check, double: bool = False, dynamic: bool = True) -> Outcome:
    """Build, capture and check one architecture in this process."""
    start = time.perf_counter()
    status = "not built"
    try:
        model, args, kwargs = build(name)
        model = model.double() if double else model
        status = "not captured"
        program = capture(model, args, kwargs, dynamic=dynamic)
    except Exception as error:
        return Outcome(status, reasons=[one_line(error)], seconds=time.perf_counter() - start)
    found = checked(program, flat_inputs(program, args, kwargs))
    found.seconds = time.perf_counter() - start
    return found


def sweep(
    names: Sequence[str], checked: Check, *, double: bool = False, dynamic: bool = True,
    done: Callable[[dict[str, Outcome]], None] = lambda outcomes: None,
) -> dict[str, Outcome]:  # fmt: skip
    """The outcome of each architecture. A check that raises, crashes or hangs counts as ``changed``.

    ``done`` is called with all outcomes so far after each architecture.
    """
    outcomes: dict[str, Outcome] = {}
    for name in names:
        found = in_child(_record, name, checked, double, dynamic)
        outcomes[name] = Outcome(**found) if "status" in found else Outcome("changed", reasons=[found["reason"]])
        done(outcomes)
    return outcomes


def _record(name: str, checked: Check, double: bool, dynamic: bool) -> dict[str, Any]:
    return asdict(outcome(name, checked, double, dynamic))


def counts(outcomes: dict[str, Outcome]) -> str:
    """``212 preserved, 3 refused, ...``."""
    number = Counter(found.status for found in outcomes.values())
    return ", ".join(f"{number[status]} {status}" for status in STATUSES if number[status])


def markdown(outcomes: dict[str, Outcome]) -> str:
    """The counts and a table with a row per architecture."""
    lines = [f"{len(outcomes)} architectures: {counts(outcomes)}", "",
             "| architecture | status | sites | freedom | error | seconds | reasons |",
             "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for name, found in outcomes.items():
        reasons = re.sub(r"\S*site-packages/", "", "; ".join(found.reasons))[:160].replace("|", "\\|")
        error = f"{found.error:.1e}" if found.sites else ""
        lines.append(f"| {name} | {found.status} | {found.sites} | {found.freedom} | {error} | {found.seconds:.1f} | "
                     f"{reasons} |")
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 if any architecture's outputs changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sites.sweep", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures instead of all")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write outcomes there, and FILE.md")
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--static", action="store_true", help="capture with all sizes static: half the time")
    options = parser.parse_args(given)

    def done(outcomes: dict[str, Outcome]) -> None:
        name = list(outcomes)[-1]
        print(f"{len(outcomes):4} {name}: {outcomes[name].status} {'; '.join(outcomes[name].reasons)[:90]}", flush=True)
        if options.out:
            options.out.write_text(json.dumps({name: asdict(found) for name, found in outcomes.items()}, indent=1))
            options.out.with_suffix(".md").write_text(markdown(outcomes))

    names = options.only or architectures()
    outcomes = sweep(names, check, double=options.double, dynamic=not options.static, done=done)
    print(markdown(outcomes))
    return int(any(found.status == "changed" for found in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
