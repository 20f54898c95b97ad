"""The commands of ``python -m qpass`` and their arguments."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpass import __version__, cli_compare, pipeline
from qpass.arguments import (
    MODEL_HELP,
    RECIPE_HELP,
    Parser,
    Raw,
    calibration_of,
    command,
    count,
    data_option,
    model_options,
    recipe_of,
    recipe_options,
)
from qpass.console import Steps
from qpass.debug.report import write_report
from qpass.demo import demo, generate
from qpass.errors import InputError
from qpass.files import output_folder, write_tensors, write_text
from qpass.formats import nearest
from qpass.graph.diff import diff
from qpass.graph.program import Program
from qpass.graph.show import as_python, show
from qpass.listing import listing
from qpass.loading import DTYPES, load_model, load_tokenizer
from qpass.passes.calibrate import check_data
from qpass.passes.kernel_sums import kernel_sums
from qpass.ranges import integer_ranges
from qpass.recipe import Recipe
from qpass.stages import STAGES

_EXITS = "exit codes: 0 done, 2 wrong use or recipe, 3 model not supported, 4 NaN or Inf, 5 cannot write, 130 Ctrl-C"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="qpass", description="Quantize a PyTorch transformer and compile it, stage by stage.",
                  epilog=f"start here: python -m qpass demo\n{_EXITS}", formatter_class=Raw)  # fmt: skip
    top.add_argument("--version", action="version", version=f"qpass {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, dest="command", parser_class=Parser)
    _demo(command(commands, "demo", demo, "compress the small real model that qpass ships, and measure it", "demo"))
    full = command(commands, "plan", plan, "say what a recipe would do to each linear, without doing it",
                   "plan demo w8a8-int8", model=True)  # fmt: skip
    full.add_argument("--full", action="store_true", help="with --calibration, every line of what the methods did")
    _compile(command(commands, "compile", compile_, "compile a model; write a report, every stage, and the weights",
                      "compile demo w8a8-int8 -o out --prompt 'The city of Paris is'", model=True))  # fmt: skip
    _show(command(commands, "show", show_, "print the program at one stage", "show demo w8a8-int8 --stage RAISED",
                   model=True))  # fmt: skip
    proof = command(commands, "ranges", ranges, "print the proof that an integer-only program cannot overflow",
                    "ranges demo int-only-w8a8 --set integer.context=512", model=True)  # fmt: skip
    proof.add_argument("--full", action="store_true", help="every op, not the one of each value that comes nearest")
    proof.add_argument("--context", metavar="N", type=count,
                       help="bounds for 1 to N tokens (default: the recipe's context)")  # fmt: skip
    _diff(command(commands, "diff", diff_, "print what changed between two stages, or between two saved texts",
                   "diff demo w8a8-int8 NORMAL RAISED\n         python -m qpass diff old.txt new.txt"))  # fmt: skip
    _sites(command(commands, "sites", sites_, "say where a model may be re-scaled exactly, and where not and why",
                    "sites demo"))  # fmt: skip
    cli_compare.add(commands)
    command(commands, "list", list_, "list stages, patterns, ops, schemes, and kernels on this machine", "list")
    return top


def _demo(command: Any) -> None:
    command.add_argument("--recipe", metavar="RECIPE", default="w8a8-int8",
                         help=f"{RECIPE_HELP} (default: %(default)s)")  # fmt: skip
    command.add_argument("--out", metavar="DIR", default="qpass-out", help="for the report (default: ./%(default)s)")
    command.add_argument("--tokens", metavar="N", type=count, default=8192,
                         help="tokens of text for the perplexity (default: %(default)s)")  # fmt: skip
    command.add_argument("--rounds", metavar="N", type=count, default=7,
                         help="most speed samples (default: %(default)s)")  # fmt: skip
    model_options(command)


def _compile(command: Any) -> None:
    command.description += """

Writes to DIR: report.html, report.md, report.json, plan.txt, stages/NN-STAGE.txt and .diff, recipe.json, and
model.safetensors with the packed weights. The compiled model cannot be loaded back from DIR yet: to run it again,
compile the float model again, or call qpass.compile(model, recipe) in Python."""
    command.epilog += ("\n         python -m qpass compile demo omniquant-w4a4 --calibration train.txt --set "
                       "learning.epochs=2 \\\n             --checkpoints run -o out")  # fmt: skip
    command.add_argument("-o", "--out", metavar="DIR", required=True, help="output folder, new or empty")
    command.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    command.add_argument("--prompt", metavar="TEXT", help="also let the compiled model continue this text")


def _show(command: Any) -> None:
    command.add_argument("--stage", metavar="STAGE", default="RAISED",
                         help=f"{', '.join(STAGES)} (default: %(default)s)")  # fmt: skip
    command.add_argument("--python", action="store_true", help="print a Python file that runs")
    command.add_argument("--no-fold", action="store_true", help="print every layer, also those that repeat")


def _sites(command: Any) -> None:
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--smooth",
        action="store_true",
        help="also places that cost a vector at run time: x * h(x / s), FSBR's gated activation",
    )
    command.add_argument("--dtype", choices=DTYPES, default="auto", help="of the float model (default: as saved)")


def _diff(command: Any) -> None:
    command.usage = "qpass diff [options] MODEL RECIPE STAGE_A STAGE_B\n       qpass diff FILE_A FILE_B"
    command.add_argument("what", nargs="+", metavar="ARGUMENT",
                         help="MODEL RECIPE STAGE_A STAGE_B, or two texts that 'show' or 'compile' wrote")  # fmt: skip
    model_options(command)
    data_option(command)
    recipe_options(command)


# ------------------------------------------------------------------------------------------------------ the commands


def plan(args: argparse.Namespace) -> None:
    """Print the plan."""
    found = _trace(args, args.model, args.recipe, pipeline.plan_stage(Recipe.parse(args.recipe), args.calibration)).plan
    assert found is not None
    print(found.text(full=args.full))


def show_(args: argparse.Namespace) -> None:
    """Print one stage."""
    stage = _stage(args.stage)
    program = _trace(args, args.model, args.recipe, stage)[stage]
    print(as_python(program) if args.python else show(program, fold=not args.no_fold), end="")


def ranges(args: argparse.Namespace) -> None:
    """Print the bounds of the integer operators, and of what the target's kernels add up."""
    if recipe_of(args, args.recipe).integer is None:
        raise InputError(f"{args.recipe} leaves floats in the program, which have no such bounds",
                         fix="use an integer-only recipe such as int-only-w8a8")  # fmt: skip
    program = _trace(args, args.model, args.recipe, "INTEGER")["INTEGER"]
    print(integer_ranges(program, args.context).text(full=args.full))
    print(kernel_sums(program, pipeline.load_target(args.target)))


def diff_(args: argparse.Namespace) -> None:
    """Print what changed between two stages or two files."""
    if len(args.what) == 2:
        print(_diff_files(*map(Path, args.what)), end="")
        return
    if len(args.what) != 4:
        raise InputError(f"diff takes two files, or a model, a recipe and two stages, and got {len(args.what)} words",
                         fix="see qpass diff --help")  # fmt: skip
    model, recipe, *names = args.what
    one, two = map(_stage, names)
    trace = _trace(args, model, recipe, max(one, two, key=STAGES.index))
    print(diff(trace[one], trace[two]), end="")


def sites_(args: argparse.Namespace) -> None:
    """Print the sites."""
    print(pipeline.sites(load_model(args.model, dtype=args.dtype), smooth=args.smooth))


def list_(args: argparse.Namespace) -> None:
    """Print what there is."""
    print(listing())


def compile_(args: argparse.Namespace) -> None:
    """Compile and write."""
    recipe = recipe_of(args, args.recipe)
    data = calibration_of(args, args.model)
    check_data(recipe, data)
    with output_folder(args.out, force=args.force) as folder:
        tokenizer = load_tokenizer(args.model) if args.prompt is not None else None
        model = load_model(args.model, dtype=args.dtype)
        with Steps() as steps:
            trace = pipeline.trace(model, recipe, target=args.target, calibration=data, progress=steps)
        print(trace.plan, flush=True)
        with Steps(["built"]) as steps:
            compiled = pipeline.build(model, trace, target=args.target, progress=steps)
        notes = []
        if args.prompt is not None:
            notes.append(f"it writes: {_generate(compiled, tokenizer, args.prompt)!r}")
            print(notes[0], flush=True)
        write_report(trace, folder, title=args.model, recipe=recipe, notes=notes)
        write_text(folder / "recipe.json", json.dumps(recipe.as_dict(), indent=2) + "\n")
        write_tensors(folder / "model.safetensors", _weights(trace["LOWERED"], compiled), {"recipe": str(recipe)})
    print(f"wrote {args.out}: report.html, stages/, model.safetensors")


def _generate(compiled: Any, tokenizer: Any, prompt: str) -> str:
    if not hasattr(compiled, "generate") or not compiled.can_generate():
        raise InputError("this model does not generate text", where="--prompt", fix="leave --prompt out")
    return generate(compiled, tokenizer, prompt, 40)


def _weights(program: Program, compiled: Any) -> dict[str, Any]:
    """The tensors that the compiled model runs on, by parameter name."""
    buffers = [buffer for _, buffer in compiled._qpass_runner.named_buffers(remove_duplicate=False)]
    return dict(zip(program.used_params(), buffers, strict=True))


def _trace(args: argparse.Namespace, model: str, recipe: str, until: str) -> pipeline.Trace:
    parsed, data = recipe_of(args, recipe), calibration_of(args, model)
    if STAGES.index(until) >= STAGES.index("SOLVED"):
        check_data(parsed, data)
    loaded = load_model(model, dtype=args.dtype)
    with Steps(STAGES[: STAGES.index(until) + 1]) as steps:
        return pipeline.trace(loaded, parsed, target=args.target, until=until, calibration=data, progress=steps)


def _stage(name: str) -> str:
    stage = name.upper()
    if stage not in STAGES:
        raise InputError(f"unknown stage {name!r}", fix=nearest(stage, STAGES) or f"use one of {', '.join(STAGES)}")
    return stage


def _diff_files(one: Path, two: Path) -> str:
    texts: list[Sequence[str]] = []
    for path in (one, two):
        try:
            texts.append(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            fix = "pass two texts that 'qpass show' or 'qpass compile' wrote, or MODEL RECIPE STAGE_A STAGE_B"
            raise InputError(f"cannot read the file: {reason}", where=str(path), fix=fix) from error
    lines = list(difflib.unified_diff(*texts, str(one), str(two), n=1, lineterm=""))
    return "".join(f"{line}\n" for line in lines) or "equal\n"
