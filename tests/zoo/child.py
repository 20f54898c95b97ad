"""Each architecture in a process of its own, one after another: a hang or a crash of one does not end the sweep."""

from __future__ import annotations

import functools
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.build import capture

SECONDS = 120


def in_child(function: Callable[..., dict[str, Any]], *args: Any, seconds: float = SECONDS) -> dict[str, Any]:
    """``function(*args)`` in a fork of this process, which has imported torch already: a fresh one takes seconds.

    Returns its dict, or ``{"reason": why not}``.
    """
    _warm()
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(send, function, args), daemon=True)
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(seconds) else {"reason": f"no result after {seconds} s"}
    except EOFError:
        return {"reason": "the process died"}
    finally:
        process.kill()
        process.join()


@functools.cache
def _warm() -> None:
    """A first capture here, so that no fork pays for what torch imports only then. One thread: a pool does not fork."""
    torch.set_num_threads(1)
    capture(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.SiLU()).eval(), (torch.ones(2, 4),), {})


def _send(send: Any, function: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    try:
        result = function(*args)
    except BaseException as error:
        result = {"reason": one_line(error)}
    send.send(result)


def one_line(error: BaseException) -> str:
    """The kind of error, the start of its text, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
