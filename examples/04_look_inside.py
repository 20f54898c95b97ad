"""Every stage can be printed, compared with another one, and asked why it is as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qpass
from qpass.debug.compare import compare
from qpass.debug.explain import explain
from qpass.graph.diff import diff


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5)
        self.gate, self.up = (nn.Linear(32, 48, bias=False) for _ in range(2))
        self.down = nn.Linear(48, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


torch.manual_seed(0)
x = torch.randn(3, 32)
trace = qpass.trace(Block().eval(), "w8a8-int8", (x,), target="reference")

print("--- a stage as text")
print(qpass.show(trace["RAISED"]))

print("--- what raising did; with inputs both programs run, and the summary has their distance")
print(diff(trace["NORMAL"], trace["RAISED"], inputs=(x,)))

print("--- what quantizing cost, value by value")
for distance in compare(trace["SOLVED"], trace["QUANTISED"], x):
    print(distance)

print("--- why is this value as it is")
print(explain(trace["FUSED"], "down"))
print(explain(trace["NORMAL"], "mul_[23]"))

print("--- the log: what each pass did")
for change in trace["FUSED"].log:
    print(f"{change.by}: {change.where}: {change.what}")
