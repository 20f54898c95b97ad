"""One capture at a time, and none cut in the middle by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOCK = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the process-wide capture lock with SIGINT deferred: torch.export is neither thread-safe nor interruptible.

    The first Ctrl-C inside takes effect when the block ends, the second at once. Only the main thread may set signal
    handlers, so other threads get the lock alone. A handler that is not Python's default is called, late, as it is.
    """
    with _LOCK, _deferred_sigint():
        yield


@contextmanager
def _deferred_sigint() -> Iterator[None]:
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    pending: list[FrameType | None] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        if pending:
            previous(signum, frame)
        pending.append(frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if len(pending) == 1:
            frame = pending.pop()
            previous(signal.SIGINT, frame)
