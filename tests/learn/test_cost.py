"""Memory within its bound, and time linear in the number of blocks. Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHILD = """
import json, resource, sys, time
import torch
from torch import nn
torch.set_num_threads(1)
from qpass.learn.settings import Learning
from qpass.methods import make
from qpass.methods.together import solve_together
from qpass.passes.plan import plan_program
from qpass.passes.raise_ops import raise_ops
from qpass.capture.normalise import normalise
from qpass.lowering.reference import target
from qpass.recipe import Recipe
from tests import tiny

width, layers, rows, batches, mib, methods = json.loads(sys.argv[1])

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))

class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

torch.manual_seed(0)
model = Stack()
with torch.no_grad():
    program = raise_ops(normalise(tiny.export(model, torch.randn(rows, width))))
program = plan_program(program, Recipe.parse("w4a4"), target)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
data = [torch.randn(rows, width) for _ in range(batches)]
settings = Learning(epochs=1, cache_mib=mib, progress=False)
began = time.process_time()
solution = solve_together([make(name) for name in methods], settings, program, lambda: data)
seconds = time.process_time() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
weights = sum(param.nbytes for param in model.parameters())
print(json.dumps({"start": start, "peak": peak, "seconds": seconds, "weights": weights, "block": weights / layers,
                  "data": sum(batch.nbytes for batch in data), "notes": [note.what for note in solution.notes]}))
"""


def child(**given) -> dict:
    words = [given[name] for name in ("width", "layers", "rows", "batches", "mib", "methods")]
    made = subprocess.run([sys.executable, "-c", CHILD, json.dumps(words)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    found: dict = json.loads(made.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("methods", [["lwc"], ["lwc", "let"]])
def test_memory(methods):
    """Peak RSS <= weights + 2 x the largest block in float32 + the cache's budget + 1 GiB, of which the libraries take
    half; and what calibration adds to the process is far less than all activations together would be."""
    found = child(width=256, layers=3, rows=4096, batches=24, mib=16, methods=methods)
    budget = 16 * 2**20
    assert found["peak"] <= found["weights"] + 2 * found["block"] + budget + 2**30
    streams = 3 * found["data"]  # float, quantized, target
    assert streams > 256 * 2**20 and found["peak"] - found["start"] - found["data"] < streams


def test_time_is_linear_in_blocks():
    """Seconds of processor time at 3, 6, 12 and 24 blocks: no more than 1.6 times a line through the origin of the
    first, whose set-up is paid once."""
    seconds = {layers: child(width=64, layers=layers, rows=256, batches=8, mib=64, methods=["lwc", "let"])["seconds"]
               for layers in (3, 6, 12, 24)}  # fmt: skip
    for layers, value in seconds.items():
        assert value <= 1.6 * seconds[3] * layers / 3, seconds
