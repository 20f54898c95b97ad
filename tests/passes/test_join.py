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


def _codes(*shape: int) -> tuple[Tensor, ...]:
    numbers = (torch.randint(1, 30, (*shape[:-1], 1), dtype=torch.int32) for _ in range(3))
    return torch.randint(-128, 128, shape).to(torch.int8), *numbers


def _weight(n: int, k: int) -> tuple[Tensor, Tensor]:
    table = torch.randint(0, 9, (3 * 32 * -(-n // 32) + 2,), dtype=torch.int32)
    return kernels.pack_int8_weight(torch.randint(-128, 128, (n, k)).to(torch.int8)), table


def test_linears_of_the_same_rows_are_one_call_and_what_is_behind_them_too() -> None:
    one, two = _weight(8, 16), _weight(8, 16)
    gate = (0, *(torch.ones(1, dtype=torch.int32),) * 3, torch.zeros(33, dtype=torch.int32))

    def gated(*codes: Tensor, crossed: bool = False, read: bool = False) -> list[Tensor]:
        op = torch.ops.qpass_cpu
        x, k = op.integer_linear(*codes, *one, 4, 8)
        other, other_k = op.integer_linear(*codes, *two, 4, 8)
        rows = (other, other_k, x, k) if crossed else (x, k, other, other_k)
        y, yk = op.integer_gated(*rows, *gate)
        return [*op.integer_quantize(y, yk, 8, False), *([x + 1] if read else [])]

    assert _joined(gated, *_codes(2, 3, 16)) == ["linears_gated_quantize"]
    crossed = _joined(lambda *codes: gated(*codes, crossed=True), *_codes(3, 16))
    assert crossed == ["linears", "gated_quantize"]
    assert _joined(lambda *codes: gated(*codes, read=True), *_codes(3, 16)) == ["linears", "gated_quantize"]


@pytest.mark.parametrize("first", [True, False])
def test_a_linear_and_the_sum_behind_it(first: bool) -> None:
    weight = _weight(8, 16)

    def summed(x: Tensor, k: Tensor, *codes: Tensor) -> list[Tensor]:
        op = torch.ops.qpass_cpu
        made = op.integer_linear(*codes, *weight, 4, 8)
        total, total_k = op.integer_add(*made, x, k) if first else op.integer_add(x, k, *made)
        codes = op.integer_quantize(*op.integer_norm(total, total_k, *NORM), 8, False)
        return [total - 1, total_k, *codes]

    assert _joined(summed, *_rows(), *_codes(3, 16)) == ["linear_add_norm_quantize"]


def _queries_keys_values(weights: list, *inputs: Tensor, read: bool = False) -> list[Tensor]:
    op, (cos, sin, keys, values, *codes) = torch.ops.qpass_cpu, inputs
    rows = [op.integer_linear(*codes, *weight, 4, n) for weight, n in zip(weights, (16, 8, 8))]
    heads = [(x.reshape(2, 3, -1, 4).transpose(-3, -2), k.unsqueeze(-1).transpose(-3, -2)) for x, k in rows]
    q = op.integer_quantize(*op.integer_rotary(*heads[0], cos, sin), 8, True)
    k = op.cache_update(keys, op.integer_pack(*op.integer_rotary(*heads[1], cos, sin), 8))
    v = op.cache_update(values, op.integer_pack(*heads[2], 8))
    return [q[0], q[2], q[3], k, v, *([rows[2][0] + 1] if read else [])]


def test_queries_keys_and_values_are_one_call() -> None:
    weights = [_weight(n, 16) for n in (16, 8, 8)]
    angles = [torch.randint(-(2**14), 2**14, (2, 1, 3, 4)).to(torch.int16) for _ in range(2)]
    caches = [torch.zeros(2, 2, 5, 6, dtype=torch.int8) for _ in range(2)]
    inputs = *angles, *caches, *_codes(2, 3, 16)
    assert _joined(lambda *given: _queries_keys_values(weights, *given), *inputs) == ["linears_heads"]
    apart = _joined(lambda *given: _queries_keys_values(weights, *given, read=True), *inputs)
    assert sorted(apart) == ["append", "linears", "rotary_append", "rotary_quantize"]


def test_attention_and_the_codes_of_its_heads() -> None:
    scales = [torch.full((1, 2, 3, 1), 20, dtype=torch.int32) for _ in range(2)]
    q, (keys, values) = _codes(1, 2, 3, 4)[0], (torch.zeros(1, 1, 5, 6, dtype=torch.int8) for _ in range(2))
    table = torch.zeros(33, dtype=torch.int32)

    def merged(*args: Tensor, read: bool = False) -> list[Tensor]:
        op = torch.ops.qpass_cpu
        x, k = op.integer_attention(*args[:5], None, False, args[5], 16384, 15, 2, 0)
        x, k = x.transpose(-3, -2), k.transpose(-3, -2)
        return [*op.integer_quantize(*op.integer_merge_heads(x, k), 8, False), *([x + 1] if read else [])]

    args = q, *scales, keys, values, table
    assert _joined(merged, *args) == ["attention_quantize"]
    assert _joined(lambda *args: merged(*args, read=True), *args) == ["attention", "merge_heads_quantize"]
