"""Every stage as a numbered text file, and beside it what changed since the stage before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from qpass.files import write_text
from qpass.graph.diff import diff
from qpass.graph.program import Program
from qpass.graph.show import show


def dump_stages(stages: Mapping[str, Program], folder: Path, done: Callable[[str], None] | None = None) -> None:
    """Write ``NN-STAGE.txt`` and ``NN-STAGE.diff`` for each stage; the first has no diff.

    Args:
        stages: stage name -> program, in order.
        folder: made if it does not exist.
        done: called with each stage written.
    """
    before: Program | None = None
    for number, (stage, program) in enumerate(stages.items()):
        dump_stage(folder, number, program, before)
        before = program
        if done:
            done(stage)


def dump_stage(folder: Path, number: int, program: Program, before: Program | None) -> None:
    """Write the two files of one stage."""
    stem = f"{number:02}-{program.stage}"
    write_text(folder / f"{stem}.txt", show(program))
    if before is not None:
        write_text(folder / f"{stem}.diff", str(diff(before, program)))
