"""What a run holds and does: memory within its bound, nothing kept of blocks that are done, work linear in blocks.

Work is counted, not timed: tensor operations and the bytes they write. Seconds: ``tests.bench.blocks_time``.
"""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qpass.learn.loop import Walk
from qpass.learn.settings import Learning
from qpass.methods import make
from qpass.methods.together import solve_together
from tests import tiny
from tests.learn.helpers import planned, recipe

OMNIQUANT = ["lwc", "let"]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@functools.cache
def stack(width, layers, rows, methods="lwc+let"):
    torch.manual_seed(0)
    model = Stack(width, layers)
    program = tiny.raise_ops(tiny.normalise(tiny.export(model, torch.randn(rows, width))))
    return planned(program, recipe(methods.split("+"))), sum(param.nbytes for param in model.parameters())


def learn(program, data, mib, methods=OMNIQUANT, steps=2):
    settings = Learning(steps=steps, cache_mib=mib, progress=False)
    return solve_together([make(name) for name in methods], settings, program, lambda: data)


# ------------------------------------------------------------------------------------------------------------ memory

CHILD = """
import json, sys
import torch
torch.set_num_threads(1)
from tests.learn.test_cost import learn, stack
width, layers, rows, batches, mib = json.loads(sys.argv[1])
with torch.no_grad():
    program, weights = stack(width, layers, rows)
data = [torch.randn(rows, width) for _ in range(batches)]
def high():  # of this process alone: ru_maxrss begins with the size of the one that started it
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
start = high()
learn(program, data, mib)
peak = high()
print(json.dumps({"start": start, "peak": peak, "weights": weights, "data": sum(batch.nbytes for batch in data)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak that the Linux kernel keeps")
def test_peak_of_a_process():
    """Peak RSS <= weights + 2 x the largest block in float32 + the cache's budget + 1 GiB.

    Tighter, as libraries take most of that GiB: learning adds some 80 MiB, much of it code loaded at first use. Each of
    the three streams of activations (float, quantized, target), all on disk here, would add 64 more if it were kept.
    """
    layers, mib = 4, 4
    made = subprocess.run([sys.executable, "-c", CHILD, json.dumps([128, layers, 2048, 64, mib])],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    found = json.loads(made.stdout.splitlines()[-1])
    assert found["peak"] <= found["weights"] + 2 * found["weights"] / layers + mib * 2**20 + 2**30
    assert found["data"] == 64 * 2**20 and found["peak"] - found["start"] < 2 * found["data"]


def live_bytes():
    """Bytes of all tensors that anything holds, each storage once."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        if isinstance(one, torch.Tensor) and one.device.type == "cpu" and type(one) in (torch.Tensor, nn.Parameter):
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("inputs", ["quantized", "teacher"])
def test_nothing_is_kept_of_a_block_that_is_done(monkeypatch, inputs):
    """Tensors alive after each block grow by what was learned in it and by its scales and zero points, and no more.

    A float copy of a block would be 4 x 16 KiB, its activations in one stream 3 x 32 KiB.
    """
    width, rows = 32, 256
    program, _ = stack(width, 6, rows)
    data = [torch.randn(rows, width) for _ in range(3)]
    real, alive, kept = Walk._block, [], []

    def watched(self, number, view):
        record, folded = real(self, number, view)
        tensors = [*record.tensors.values(), *folded.params.values()]
        kept.append(sum(one.untyped_storage().nbytes() for one in tensors if isinstance(one, torch.Tensor)))
        kept[-1] += sum(value.nbytes for edit in folded.edits for value in vars(edit).values()
                        if isinstance(value, torch.Tensor))  # fmt: skip
        alive.append(live_bytes())
        return record, folded

    monkeypatch.setattr(Walk, "_block", watched)
    settings = Learning(steps=2, cache_mib=0, inputs=inputs, progress=False)
    with torch.enable_grad():
        solve_together([make(name) for name in OMNIQUANT], settings, program, lambda: data)
    assert max(kept) < 8 * width * width * 4  # less than one float copy of a block
    for number in range(1, 6):
        assert alive[number] - alive[number - 1] <= kept[number], (number, alive, kept)


def test_activations_within_the_budget(monkeypatch):
    """What the store holds in memory never passes its budget; all streams together would take six times that."""
    seen = []
    real = Walk._forget
    monkeypatch.setattr(Walk, "_forget", lambda self, number: (seen.append(self.store), real(self, number)))
    program, _ = stack(32, 3, 256)
    data = [torch.randn(256, 32) for _ in range(8)]
    learn(program, data, mib=0.125)
    assert 0 < seen[0].peak <= 2**17 and seen[0].spilled >= 8 * 3 * 2**15 - 2**17


# -------------------------------------------------------------------------------------------------------------- work


class Counted(TorchDispatchMode):
    """Counts operations, and the bytes of what they return."""

    def __init__(self):
        super().__init__()
        self.ops = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.ops += 1
        made = result if isinstance(result, tuple | list) else (result,)
        self.bytes += sum(one.nbytes for one in made if isinstance(one, torch.Tensor))
        return result


@pytest.mark.parametrize(("methods", "slack"), [(["lwc"], 0.02), (OMNIQUANT, 0.3)])
def test_work_is_linear_in_blocks(methods, slack):
    """Each further block costs as many operations and bytes as any other, at 3, 6, 12 and 24 blocks.

    With scales a block may cost less or more: it is rolled back, or its edits are checked one by one as together they
    move an output too far. Work that grows with the square would make the last step four times the first.
    """
    work = {}
    for layers in (3, 6, 12, 24):
        program, _ = stack(16, layers, 32, "+".join(methods))
        data = [torch.randn(32, 16) for _ in range(2)]
        with Counted() as counted:
            learn(program, data, mib=64, methods=methods)
        work[layers] = counted.ops, counted.bytes
    for place in range(2):
        a_block = (work[6][place] - work[3][place]) / 3
        for less, more in ((6, 12), (12, 24)):
            assert abs((work[more][place] - work[less][place]) / (more - less) / a_block - 1) < slack, work
