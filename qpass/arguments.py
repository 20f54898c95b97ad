"""What the commands of ``python -m qpass`` share: the parser, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from qpass import pipeline
from qpass.errors import InputError
from qpass.formats import nearest
from qpass.loading import DTYPES, load_calibration
from qpass.overrides import overridden
from qpass.recipe import Recipe

MODEL_HELP = "a folder with config.json and *.safetensors, a Hugging Face hub name, or the word 'demo'"
RECIPE_HELP = "a scheme such as w8a8-int8, smoothquant-w8a8 (see 'list'), or a .yaml or .json file"
SEQUENCES, LENGTH = 32, 256  # of calibration text


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are qpass errors, with the nearest legal word."""

    def error(self, message: str) -> NoReturn:
        fix = f"see {self.prog} --help"
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            legal = re.findall(r"'(.*?)'", wrong[2])
            message = f"{message.split(':')[0]}: unknown {wrong[1]!r}"
            fix = nearest(wrong[1], legal) or f"use one of {', '.join(legal)}"
        raise InputError(message, fix=fix)


class Raw(argparse.RawDescriptionHelpFormatter):
    """Texts keep their lines."""


def command(commands: Any, name: str, run: Any, text: str, example: str, *, model: bool = False) -> Any:
    """Add a command; with ``model`` one that takes a model and a recipe."""
    made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.",
                               epilog=f"example: python -m qpass {example}", formatter_class=Raw)  # fmt: skip
    made.set_defaults(run=run)
    made.add_argument("--traceback", action="store_true", help="on an error, show where it came from")
    if model:
        made.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        made.add_argument("recipe", metavar="RECIPE", help=RECIPE_HELP)
        model_options(made)
        data_option(made)
        recipe_options(made)
    return made


def data_option(command: Any) -> None:
    """``--calibration``, ``--sequences`` and ``--length``."""
    command.add_argument("--calibration", metavar="FILE",
                         help="text for methods that look at data; its first pieces are used")  # fmt: skip
    command.add_argument("--sequences", metavar="N", type=count, default=SEQUENCES,
                         help="pieces of it (default: %(default)s)")  # fmt: skip
    command.add_argument("--length", metavar="N", type=count, default=LENGTH,
                         help="tokens of a piece (default: %(default)s)")  # fmt: skip


def recipe_options(command: Any) -> None:
    """``--set`` and ``--checkpoints``."""
    command.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[],
                         help="another value of a field of the recipe: learning.steps=64, lwc.rate=0.05, "
                              "linears.lm_head=keep; may be repeated")  # fmt: skip
    command.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="of methods that learn, a file a block; a run that was stopped goes on behind the last",
    )


def recipe_of(args: argparse.Namespace, text: str) -> Recipe:
    """The recipe that the arguments ask for. Raises RecipeError."""
    folder = [f"learning.folder={args.checkpoints}"] if args.checkpoints else []
    return overridden(Recipe.parse(text), [*args.set, *folder])


def calibration_of(args: argparse.Namespace, model: str) -> list[Any] | None:
    """The batches that the arguments ask for, or None. Raises InputError."""
    if args.calibration is None:
        return None
    return list(load_calibration(model, args.calibration, sequences=args.sequences, length=args.length))


def model_options(command: Any) -> None:
    """``--dtype`` and ``--target``."""
    command.add_argument("--dtype", choices=DTYPES, default="auto", help="of the float model (default: as saved)")
    command.add_argument("--target", type=_target, default="cpu", metavar="{" + ",".join(pipeline.TARGETS) + "}",
                         help="cpu: fast kernels; reference: slow, the oracle; cuda:sm_80: another GPU than sm_90 "
                              "(default: %(default)s)")  # fmt: skip


def _target(text: str) -> str:
    """As argparse takes a type: a target's name, with what may follow a colon."""
    if text.partition(":")[0] not in pipeline.TARGETS:
        legal = ", ".join(map(repr, pipeline.TARGETS))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {legal})")
    return text


def count(text: str) -> int:
    """A number of 1 or more, as argparse takes a type."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


count.__name__ = "count of 1 or more"  # argparse puts it into its message
