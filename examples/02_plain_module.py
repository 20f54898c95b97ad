"""Compile a plain module: example inputs by position and by name, and a recipe written as a dict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qpass


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(64, 200), nn.Linear(200, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> dict[str, Tensor]:
        hidden = F.relu(self.fc1(x))
        features = self.fc2(hidden if gain is None else hidden * gain)
        return {"features": features, "logits": self.head(features)}


RECIPE = {
    "name": "mixed",
    "linears": {"head": "keep", "fc1": "w8a8-int8", "*": "w4a16-g64"},  # the first line that matches wins
}

torch.manual_seed(0)
model = MLP().eval()
args, kwargs = (torch.randn(4, 64),), {"gain": torch.rand(200)}

# target="reference" runs anywhere without a C++ compiler; leave it out for the fast kernels of the CPU.
compiled = qpass.compile(model, RECIPE, args, kwargs, target="reference")
print(compiled.qpass_plan)

for batch in (1, 4, 9):  # the batch is dynamic
    x = torch.randn(batch, 64)
    with torch.no_grad():
        want = model(x, gain=kwargs["gain"])
    got = compiled(x, gain=kwargs["gain"])
    error = (got["logits"] - want["logits"]).norm() / want["logits"].norm()
    print(f"batch {batch}: logits {list(got['logits'].shape)}, relative error {error:.4f}")
