"""Two kernels that a target has as one: joined where nothing else reads what is between, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from qpass.graph.values import op_name
from qpass.lowering.cpu import kernels
from qpass.lowering.cpu.integer import JOINS
from qpass.passes.join import join

pytestmark = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))
NORM = (None, None, None, None, None, [16384, 30, 22627, 13, 0])


def _rows() -> tuple[Tensor, Tensor]:
    return torch.randint(-(2**28), 2**28, (3, 8), dtype=torch.int32), torch.full((3, 1), 20, dtype=torch.int32)


def _joined(fn: Callable[..., object], *args: Tensor) -> list[str]:
    """The kernels of ``fn`` after joining, which must not change what it gives."""
    kernels.load()
    module = make_fx(fn)(*args)
    want = module(*args)
    join(module.graph, JOINS)
    module.graph.lint()
    got = fx.GraphModule(module, module.graph)(*args)
    assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))
    names = [op_name(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return [name.removeprefix("qpass_cpu.integer_") for name in names if name.startswith("qpass_cpu.")]


def _sum_norm_codes(x: Tensor, k: Tensor, *, late: bool = True, norm_read: bool = False) -> list[Tensor]:
    op = torch.ops.qpass_cpu
    a, ka = op.integer_add(x, k, x, k)
    early = [] if late else [a + 1]
    y, ky = op.integer_norm(a, ka, *NORM)
    codes = list(op.integer_quantize(y, ky, 8, False))
    return [*codes, *early, *([y] if norm_read else []), *([a - 1, ka] if late else [])]


def test_a_chain_becomes_one() -> None:
    assert _joined(lambda x, k: _sum_norm_codes(x, k), *_rows()) == ["add_norm_quantize"]


def test_what_others_read_stays() -> None:
    assert _joined(lambda x, k: _sum_norm_codes(x, k, norm_read=True), *_rows()) == ["add", "norm", "quantize"]
    assert _joined(lambda x, k: _sum_norm_codes(x, k, late=False), *_rows()) == ["add", "norm_quantize"]


def test_rows_of_two_producers_are_not_joined() -> None:
    def mixed(x: Tensor, k: Tensor) -> list[Tensor]:
        one, two = torch.ops.qpass_cpu.integer_norm(x, k, *NORM), torch.ops.qpass_cpu.integer_norm(x + 1, k, *NORM)
        return list(torch.ops.qpass_cpu.integer_quantize(one[0], two[1], 8, True))

    assert _joined(mixed, *_rows()) == ["norm", "norm", "quantize"]


def test_into_a_cache() -> None:
    def appended(x: Tensor, k: Tensor, past: Tensor) -> list[Tensor]:
        op = torch.ops.qpass_cpu
        return [op.cache_update(past, op.integer_pack(x, k, 8))]

    x, k = _rows()
    args = x.reshape(1, 1, 3, 8), k.reshape(1, 1, 3, 1), torch.zeros(1, 1, 2, 10, dtype=torch.int8)
    assert _joined(appended, *args) == ["append"]
