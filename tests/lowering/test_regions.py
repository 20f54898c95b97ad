"""A region through Inductor has the bits of its meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from qpass.lowering import Region
from qpass.lowering.inductor.regions import _Artifact
from qpass.ops import REGISTRY

ROWS = torch.randint(-(2**29), 2**29, (7, 40)).to(torch.int32), torch.randint(-20, 60, (7, 1)).to(torch.int32)
VECTOR = torch.randint(2**14, 2**15, (40,)).to(torch.int32), torch.randint(0, 5, (40,)).to(torch.int32)
EXPONENT = torch.tensor([12], dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "tensors", "literals"),
    [("integer_rms_norm", (*ROWS, *VECTOR, EXPONENT), (17000, 20)), ("integer_quantize", ROWS, (8, False))],
)
def test_inductor_has_the_bits_of_the_meaning(name: str, tensors: tuple[Any, ...], literals: tuple[Any, ...]) -> None:
    module = make_fx(lambda *args: REGISTRY[name].meaning(*args, *literals), tracing_mode="fake")(*tensors)
    compiled = _Artifact(Region(name, module.graph))
    want = REGISTRY[name].meaning(*tensors, *literals)
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        assert all(torch.equal(one, two) for one, two in zip(compiled(*tensors), want, strict=True))
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(Region(name, module.graph)(*tensors), want))
