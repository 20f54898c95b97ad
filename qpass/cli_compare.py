"""The commands that show and compare: ``plot`` and ``compare-formats``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers

from qpass import pipeline
from qpass.arguments import (
    LENGTH,
    MODEL_HELP,
    RECIPE_HELP,
    SEQUENCES,
    Parser,
    Raw,
    calibration_of,
    command,
    count,
    data_option,
    recipe_of,
    recipe_options,
)
from qpass.console import count_bar
from qpass.debug.compare_formats import compare_formats, default_recipes
from qpass.debug.figure import check_matplotlib
from qpass.debug.format_page import save, text
from qpass.debug.plot_blocks import learned, save_blocks
from qpass.debug.plot_grids import save_grids
from qpass.debug.plot_ranges import block_of, ranges, save_ranges
from qpass.debug.plots import activations, save_activations
from qpass.errors import InputError
from qpass.files import output_folder
from qpass.loading import DTYPES, load_calibration, load_ids, load_model
from qpass.passes.calibrate import check_data
from qpass.recipe import Recipe

PLOTS, COMPARISON = "qpass-plots", "qpass-formats"
SHIPPED = "the text that qpass ships"
_TOKENS = SEQUENCES * LENGTH


def add(commands: Any) -> None:
    """Add both to the command line."""
    plot = command(commands, "plot", _no_plot, "draw what linears read, and what a recipe's methods made of it",
                   "plot activations demo -o plots")  # fmt: skip
    kinds = plot.add_subparsers(metavar="PLOT", required=True, dest="plot", parser_class=Parser)
    one = _plot(kinds, "activations", plot_activations, "the distribution of what each linear reads: first, middle and "
                "last block", "plot activations demo -o plots")  # fmt: skip
    one.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    _text(one, "--text", "--calibration")
    one.add_argument("--tokens", metavar="N", type=count, default=_TOKENS, help="of the text (default: %(default)s)")
    one.add_argument("--dtype", choices=DTYPES, default="auto", help="of the model (default: as saved)")
    _plot(kinds, "grids", plot_grids, "what INT8, E4M3 and E5M2 do to a vector with an outlier", "plot grids -o plots")
    blocks = _plot(kinds, "blocks", plot_blocks, "the loss of each block before and after learning, of a run with "
                   "--checkpoints", "plot blocks run -o plots")  # fmt: skip
    blocks.add_argument("run_folder", metavar="RUN", help="the folder of the run's checkpoints")
    many = _plot(kinds, "ranges", plot_ranges, "the ranges of what a block reads, before and after a recipe's methods",
                 "plot ranges demo smoothquant-w8a8 --calibration train.txt -o plots")  # fmt: skip
    many.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    many.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
    many.add_argument("--block", metavar="NAME", help="such as model.layers.3 (default: the middle one)")
    data_option(many)
    recipe_options(many)
    many.add_argument("--dtype", choices=DTYPES, default="auto", help="of the model (default: as saved)")
    _compare(command(commands, "compare-formats", compare_formats_,
                     "measure many schemes on one model: INT8 or FP8, INT4 or FP4, and what each costs",
                     "compare-formats demo --tokens 2048"))  # fmt: skip


def _plot(kinds: Any, name: str, run: Any, what: str, example: str) -> Any:
    made = command(kinds, name, run, what, example)
    made.add_argument("-o", "--out", metavar="DIR", default=PLOTS,
                      help=f"for {name}.png and {name}.json, which are replaced (default: ./%(default)s)")  # fmt: skip
    return made


def _text(made: Any, *names: str) -> None:
    made.add_argument(*names, dest="text", metavar="FILE", help=f"a text to run the model on (default: {SHIPPED})")


def _compare(made: Any) -> None:
    made.formatter_class = Raw
    made.description += f"""

A causal language model is measured by its perplexity, any other by the cosine similarity of its outputs to the float
model's. Without --formats: {", ".join(default_recipes(data=False))};
with --calibration also {", ".join(default_recipes(data=True)[len(default_recipes(data=False)) :])}.
Writes compare-formats.md, .json and .png to DIR. A scheme that cannot run on the model is a row with its reason."""
    made.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    made.add_argument(
        "--formats",
        metavar="RECIPE",
        nargs="+",
        default=None,
        help="schemes, with methods as in gptq+w4a8-fp+lorc, or recipe files; a comma also parts them",
    )
    made.add_argument("--weights-only", action="store_true", help="leave inputs in float, whatever a scheme says")
    made.add_argument("--tokens", metavar="N", type=count, default=_TOKENS,
                      help="of text to measure on (default: %(default)s)")  # fmt: skip
    _text(made, "--text")
    data_option(made)
    made.add_argument("--dtype", choices=DTYPES, default="auto", help="of the model (default: as saved)")
    made.add_argument("-o", "--out", metavar="DIR", default=COMPARISON,
                      help="output folder; files of the same name are replaced (default: ./%(default)s)")  # fmt: skip


def _no_plot(args: argparse.Namespace) -> None:
    raise AssertionError(args.plot)  # a subcommand is required and sets its own function


# ------------------------------------------------------------------------------------------------------ the commands


def plot_activations(args: argparse.Namespace) -> None:
    """Run the model on the text and write the figure."""
    check_matplotlib()
    with output_folder(args.out, force=True) as folder:
        ids = _ids(args, 1)
        model = load_model(args.model, dtype=args.dtype)
        with count_bar("step", 2) as begin:
            begin("capture: torch.export")
            captured = pipeline.capture(model)
            begin(f"run on {len(ids)} tokens")
            longest = captured.call.ranges.get("seq", (1, None))[1]
            seen = activations(captured, ids[None].split(min(LENGTH, longest or LENGTH), dim=1), args.model)
        save_activations(seen, folder)
    for block, left in seen.left_out.items():
        print(f"{block or 'the model'}: {left} more inputs are not shown")
    print(f"wrote {args.out}: activations.png, activations.json ({len(seen.panels)} inputs of linears)")


def _ids(args: argparse.Namespace, least: int) -> torch.Tensor:
    ids = load_ids(args.model, args.text, most=args.tokens)
    if len(ids) < least:
        raise InputError(f"{len(ids)} tokens of text, and it takes {least}", where=args.text or "--tokens",
                         fix="pass a longer text, or more tokens")  # fmt: skip
    return ids


def plot_grids(args: argparse.Namespace) -> None:
    """Write the figure."""
    check_matplotlib()
    with output_folder(args.out, force=True) as folder:
        found = save_grids(folder)
    for one in found:
        print(f"{one.label}: SQNR {one.sqnr:.1f} dB, without the outlier {one.body:.1f} dB")
    print(f"wrote {args.out}: grids.png, grids.json")


def plot_blocks(args: argparse.Namespace) -> None:
    """Read the checkpoints and write the figure."""
    check_matplotlib()
    found = learned(Path(args.run_folder))
    with output_folder(args.out, force=True) as folder:
        save_blocks(found, folder, Path(args.run_folder).resolve().name)
    for one in found:
        what = "loss {rtn:.4g} -> {best:.4g}".format(**one.losses) if one.kept else f"rolled back: {one.why}"
        print(f"{one.block}: {what}")
    print(f"wrote {args.out}: blocks.png, blocks.json")


def plot_ranges(args: argparse.Namespace) -> None:
    """Run the methods, then the model before and after them, and write the figure."""
    check_matplotlib()
    recipe, batches = recipe_of(args, args.recipe), calibration_of(args, args.model)
    if batches is None:
        raise InputError("ranges are those on some text, and there is none", where="--calibration",
                         fix="pass --calibration FILE")  # fmt: skip
    with output_folder(args.out, force=True) as folder:
        model = load_model(args.model, dtype=args.dtype)
        with count_bar("step", 3) as begin:
            begin("capture: torch.export")
            target, captured = pipeline.load_target("reference"), pipeline.capture(model)
            planned = pipeline.run(captured, recipe, target, until="PLANNED")["PLANNED"]
            block = block_of(planned, args.block)  # before the methods run, which may take long
            begin("the methods of the recipe")
            solved = pipeline.run(captured, recipe, target, until="SOLVED", calibration=batches)["SOLVED"]
            begin(f"run before and after on {len(batches)} pieces of text")
            found = ranges(planned, solved, batches, block)
        save_ranges(found, folder, f"{args.model}, {recipe}, {sum(batch.numel() for batch in batches):,} tokens")
    for one in found:
        print("{}: largest channel over the median {:.3g} -> {:.3g}".format(one.reading.label, *one.outliers))
    print(f"wrote {args.out}: ranges.png, ranges.json ({one.reading.block or 'the whole model'})")


def compare_formats_(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    check_matplotlib()
    data = args.calibration is not None
    names = [name.strip() for word in args.formats or default_recipes(data=data) for name in word.split(",")]
    recipes = [name for name in names if name]
    if not recipes:
        raise InputError("there is no format to compare", where="--formats", fix="name at least one, or leave it out")
    for name in recipes:  # a misspelled one is found before the model is loaded
        check_data(Recipe.parse(name), [] if data else None)
    with output_folder(args.out, force=True) as folder:
        ids = _ids(args, 2)
        batches = None
        if data:
            batches = load_calibration(args.model, args.calibration, sequences=args.sequences, length=args.length)
        model = load_model(args.model, dtype=args.dtype)
        with count_bar("scheme", len(recipes) + 1) as begin:
            found = compare_formats(model, recipes, ids, args.model, calibration=batches, begin=begin,
                                    weights_only=args.weights_only)  # fmt: skip
        print(text(found))
        save(found, folder, _about(args))
    print(f"wrote {args.out}: compare-formats.md, compare-formats.json, compare-formats.png")


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "text": args.text and Path(args.text).name, "weights_only": args.weights_only, "dtype": args.dtype,
        "calibration": args.calibration and Path(args.calibration).name,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
