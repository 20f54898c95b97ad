"""What the commands share on the terminal: progress, Ctrl-C, and quiet libraries."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import transformers
from tqdm import tqdm

from qpass.stages import STAGES

_WORK = {
    "CAPTURED": "capture: torch.export",
    "RAISED": "recognize ops",
    "QUANTISED": "quantize weights",
    "LOWERED": "lower to kernels",
    "built": "build: pack weights, compile C++",
}


def _label(stage: str) -> str:
    """What is under way until ``stage`` is reached."""
    return _WORK.get(stage, stage.lower())


class Steps:
    """Progress over the stages of one compilation: a bar on a terminal, a line a stage elsewhere. Goes to stderr.

    Args:
        names: the stages to come, in order; the last step of a compilation is ``built``.
    """

    def __init__(self, names: Sequence[str] = STAGES) -> None:
        self._names = list(names)
        self._start = time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty():
            layout = "{desc:<36} {bar:20} {n_fmt}/{total_fmt}, {elapsed}"
            self._bar = tqdm(total=len(self._names), desc=_label(self._names[0]), bar_format=layout, leave=False)

    def __call__(self, stage: str) -> None:
        """``stage`` is reached."""
        if self._bar is None:
            print(f"  {stage:<10} {time.perf_counter() - self._start:6.1f} s", file=sys.stderr, flush=True)
            return
        self._bar.update()
        position = self._names.index(stage) + 1
        if position < len(self._names):
            self._bar.set_description_str(_label(self._names[position]))

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def token_bar(label: str, window: int) -> Iterator[Callable[[int, int], None]]:
    """A bar in tokens for ``evaluate.perplexity(progress=...)``; silent where stderr is not a terminal."""
    bar = tqdm(desc=label, unit=" tokens", leave=False, disable=None)

    def progress(done: int, total: int) -> None:
        bar.total = total * window
        bar.update(done * window - bar.n)

    try:
        yield progress
    finally:
        bar.close()


@contextlib.contextmanager
def count_bar(unit: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over ``total`` pieces of work: call the result with the name of each as it begins.

    Elsewhere than on a terminal each name is a line. Goes to stderr.
    """
    bar = tqdm(total=total, unit=unit, leave=False, disable=None)
    begun: list[str] = []

    def begin(name: str) -> None:
        if bar.disable:
            print(f"  {len(begun) + 1}/{total} {name}", file=sys.stderr, flush=True)
        else:
            bar.update(len(begun) - bar.n)
            bar.set_description_str(name)
        begun.append(name)

    try:
        yield begin
    finally:
        bar.close()


class Interrupts:
    """Whether Ctrl-C was pressed, which a library may have turned into an error of its own."""

    happened = False


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[Interrupts]:
    """Remember a Ctrl-C that comes inside the block, and raise KeyboardInterrupt as always."""
    seen = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        seen.happened = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)


def quiet_libraries() -> None:
    """No bars and no advice from the libraries below: what matters to the user, qpass says."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
