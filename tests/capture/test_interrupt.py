"""Ctrl-C during capture: late the first time, at once the second, and the handler is put back."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qpass.capture.export import export_model
from qpass.capture.interrupt import exclusive


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_one_waits_for_the_end() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), exclusive():
        _interrupt()
        reached.append(1)
    assert reached == [1] and signal.getsignal(signal.SIGINT) is before


def test_the_second_one_is_at_once() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), exclusive():
        _interrupt()
        reached.append(1)
        _interrupt()
        reached.append(2)
    assert reached == [1] and signal.getsignal(signal.SIGINT) is before


def test_inside_export() -> None:
    class Interrupting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            _interrupt()
            return x + 1

    with pytest.raises(KeyboardInterrupt):
        export_model(Interrupting().eval(), (torch.ones(3, 4),))
    export_model(nn.Linear(4, 4).eval(), (torch.ones(3, 4),))  # nothing is left half done


def test_a_custom_handler_is_called_late_and_an_error_is_kept() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: seen.append(signum))
    try:
        with pytest.raises(ValueError), exclusive():
            _interrupt()
            assert seen == []
            raise ValueError
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    handlers: list[Any] = []

    def work() -> None:
        with exclusive():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
