"""Free memory goes back to the system, and only when enough has come together."""

import sys

import pytest
import torch

from qpass.debug.evaluate import rss_bytes
from qpass.lowering import memory


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is bounded on glibc only")
def test_freed_blocks_between_results_go_back():
    """Blocks below the allocator's own limit, every second one freed: none of them is at the heap's end."""
    torch.empty(2**20)  # whatever a first tensor costs
    blocks = [torch.ones(2**16 // 4) for _ in range(2048)]  # 64 KiB each
    kept = blocks[::2]
    before = rss_bytes()
    del blocks
    memory.release()
    assert before - rss_bytes() > 48 * 2**20, "of 64 MiB"
    assert all(bool((block == 1).all()) for block in kept[:8])


def test_the_trimmer_waits_for_enough(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "_trim", lambda: calls.append(1))
    trimmer = memory.Trimmer()
    for amount in (memory.AT_ONCE - 1, 1, memory.AT_ONCE - 1):
        trimmer.add(amount)
    assert len(calls) == 1
