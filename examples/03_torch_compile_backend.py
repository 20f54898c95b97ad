"""qpass as a backend of torch.compile: for a model that torch.export cannot take whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qpass.backend


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 100:  # depends on the values: Dynamo cuts the graph here
            x = x / 100
        return x + self.down(F.gelu(self.up(x)))


torch.manual_seed(0)
model = Block().eval()
compiled = torch.compile(model, backend="qpass", options={"recipe": "w8a8-int8", "target": "reference"})

with torch.no_grad():
    for scale in (1, 1000):
        x = scale * torch.randn(4, 64)
        want, got = model(x), compiled(x)
        print(f"inputs times {scale}: relative error {(got - want).norm() / want.norm():.4f}")

for trace in qpass.backend.traces():
    if trace.plan and trace.plan.choices:
        print(trace.plan)
