"""What holds for every op of the dialect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.integer.exp2 import TABLE
from qpass.ops import REGISTRY

ROW = "int8:token:asym"
WEIGHT = "int8:channel:sym"
STATIC = "int8:tensor:asym:static"


def _float(*shape: int) -> Tensor:
    return torch.randn(shape)


def _quantized(form: str = ROW) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero = REGISTRY["quantize"].call(_float(2, 3, 8), form)
    return codes, scale, zero


def _rows(form: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(part.flatten(0, -2)[:5] for part in _quantized(form))


def _parts(form: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    weight, fmt = _float(6, 8), Format.parse(form)
    found = codec.choose(weight, fmt)
    return (codec.quantize(weight, found, fmt), *found)


def _weight() -> tuple[Tensor, Tensor]:
    return torch.randint(-127, 128, (6, 8), dtype=torch.int8), torch.rand(6, 1) + 0.5


def _integers() -> dict[str, list[tuple[Any, ...]]]:
    """Examples of the integer dialect: rows, codes, dyadic vectors."""
    row = torch.randint(-(2**28), 2**28, (2, 3, 8)).int(), torch.randint(0, 30, (2, 3, 1)).int()
    heads = torch.randint(-(2**28), 2**28, (2, 4, 5, 8)).int(), torch.randint(0, 30, (2, 4, 5, 1)).int()
    vector = torch.randint(2**14, 2**15, (8,)).int(), torch.randint(0, 4, (8,)).int(), torch.tensor([9]).int()
    one, table = [part[:1] for part in vector], torch.tensor(TABLE).int()
    codes = REGISTRY["integer_quantize"].call(*row, 8, False)
    even, _, m, k = REGISTRY["integer_quantize"].call(*heads, 8, True)
    cache = REGISTRY["integer_pack"].call(heads[0][:, :2], heads[1][:, :2], 8)
    weight = torch.randint(-127, 128, (8, 8)).to(torch.int8)
    angle = torch.randint(-(2**14), 2**14, (2, 1, 5, 8)).to(torch.int16)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    ids, held = torch.randint(0, 6, (2, 3)), torch.randint(-9, 9, (6, 8)).to(torch.int16)
    sums = weight.sum(1, dtype=torch.int32)
    symmetric = codes[0], None, *codes[2:]
    return {
        "integer_activation": [(*row, "silu", *vector, table), (*row, "gelu", *one, table)],
        "integer_add": [(*row, *row)],
        "integer_attention": [(even, m, k, cache, cache, mask, False, table, 20000, 15, 8, 0),
                              (even, m, k, cache, cache, None, True, table, 20000, 15, 8, 400000)],
        "integer_concat": [(*row, *row)],
        "integer_embedding": [(ids, held, vector[0][:6], vector[1][:6])],
        "integer_gated": [(*row, *row, "silu", *one, table), (*row, *row, "quick_gelu", *vector, table)],
        "integer_layer_norm": [(*row, *vector, vector[0], one[2], 17000, 20),
                               (*row, None, None, None, None, None, 17000, 20)],
        "integer_linear": [(*codes, weight, *vector, sums, vector[0], one[2], 12),
                           (*symmetric, weight, *vector, None, None, None, 12)],
        "integer_logits": [row],
        "integer_merge_heads": [heads],
        "integer_pack": [(*heads, 8), (*heads, 4)],
        "integer_quantize": [(*row, 8, False), (*row, 4, True)],
        "integer_rms_norm": [(*row, *vector, 17000, 20), (*row, None, None, None, 17000, 20)],
        "integer_rotary": [(*heads, angle, angle), (*heads, angle, angle, True)],
        "integer_scale": [(*row, *vector), (*row, *one)],
    }


def _cached() -> dict[str, list[tuple[Any, ...]]]:
    """Examples of a cache of codes."""
    q, kv, mask = _float(2, 4, 5, 8), _float(2, 2, 5, 8), _float(2, 1, 5, 5)
    forms = (ROW, "int4:g4:asym:f32", "e4m3:token:sym", "mxfp4")
    held = {form: REGISTRY["kv_rows"].call(kv, form) for form in forms}
    return {
        "kv_attention": [(q, held[ROW], held[forms[1]], mask, ROW, forms[1], 8, 8),
                         (q, held[forms[2]], held["mxfp4"], None, forms[2], "mxfp4", 8, 8, True, 0.3),
                         (q, held[ROW], held[ROW], mask, ROW, ROW, 8, 8, False, 0.3, 50.0, True)],
        "kv_rows": [(kv, form) for form in forms],
        "kv_unpack": [(held[form], form, 8, torch.float32) for form in forms],
    }


def _examples() -> dict[str, list[tuple[Any, ...]]]:
    x, w, q = _float(2, 3, 8), _float(8), _float(2, 4, 5, 8)
    kv, mask = _float(2, 2, 5, 8), _float(2, 1, 5, 5)
    codes, scale = _weight()
    ends = torch.tensor([2, 5, 5]).int()
    return {
        **_integers(),
        **_cached(),
        "activation": [(x, "silu"), (x, "relu_squared"), (x, "gelu", w)],
        "activation_quantize": [(x, "gelu", None, ROW), (x, "quick_gelu", w, ROW)],
        "attention": [(q, kv, kv, mask), (q, q, q, None, True, 0.3), (q, kv, kv, None)],
        "attention_output": [(_float(2, 4, 5, 5).softmax(-1), kv)],
        "attention_weights": [(q, kv, mask), (q, kv, None, True, 0.3, 50.0), (q, kv, mask > 0)],
        "cache_update": [(kv, kv[:, :, :1])],
        "eager_attention": [(q, kv, kv, mask, 0.3, 50.0), (q, q, q, None, 0.3)],
        "fake_quantize": [(x, form) for form in (ROW, "mxfp4", "e4m3:token:sym")],
        "gated": [(x, x, "silu"), (x, x, "gelu_tanh", w)],
        "gated_quantize": [(x, x, "silu", None, ROW), (x, x, "silu", w, ROW)],
        "grouped_linear": [(_float(5, 8), _float(3, 6, 8), ends)],
        "layer_norm": [(x, w, w, 1e-5), (x, w, None, 1e-5), (x, None, None, 1e-5)],
        "layer_norm_quantize": [(x, w, w, 1e-5, ROW)],
        "dequantize_input": [(*_quantized(form), form, torch.float32) for form in (ROW, "nvfp4", "e4m3:token:sym")],
        "dequantize_weight": [(*_parts(form), form, torch.bfloat16) for form in ("nvfp4", "e2m1:g4:sym:m2", WEIGHT)],
        "linear": [(*_quantized(), codes, scale, None, None, _float(6), ROW, WEIGHT, torch.float32),
                   (*_quantized("mxfp8"), *_parts("mxfp4"), None, "mxfp8", "mxfp4", torch.float32)],
        "quantize": [(x, form) for form in (ROW, "mxfp4", "int8:tensor:asym", "e5m2:token:sym")],
        "quantize_static": [(x, torch.tensor([[0.1]]), torch.tensor([[3]], dtype=torch.int32), STATIC)],
        "quantized_grouped_linear": [
            (*_rows("int8:token:asym"), *_parts(WEIGHT), ends[:2], ROW, WEIGHT, torch.float32),
            (*_rows("mxfp8"), *_parts("mxfp4"), ends[:2], "mxfp8", "mxfp4", torch.float32),
        ],
        "rms_norm": [(x, w, 1e-6), (x, w, 1e-6, 1.0, True), (x, None, 1e-6, 0.0, True)],
        "rms_norm_quantize": [(x, w, 1e-6, 0.0, False, ROW), (x, None, 1e-6, 0.0, True, ROW)],
        "rotary": [(q, q, q), (q, q, q, True)],
        "weight_only_grouped_linear": [(_float(5, 8), *_parts("int4:g4:asym"), ends[:2], "int4:g4:asym")],
        "weight_only_linear": [(x, codes, scale, None, None, None, WEIGHT), (x, *_parts("nvfp4"), None, "nvfp4")],
    }


def _types(values: Any) -> list[tuple[torch.dtype, torch.Size, str]]:
    return [(value.dtype, value.shape, str(value.device)) for value in pytree.tree_leaves(values)]


def test_every_op_has_an_example() -> None:
    assert sorted(REGISTRY) == sorted(_examples()), "give each op of the dialect an example in this file"


@pytest.mark.parametrize("name", sorted(_examples()))
def test_call_is_meaning(name: str) -> None:
    op = REGISTRY[name]
    for args in _examples()[name]:
        for one, two in zip(pytree.tree_leaves(op.call(*args)), pytree.tree_leaves(op.meaning(*args))):
            assert one.dtype == two.dtype and torch.equal(one, two)


@pytest.mark.parametrize("name", sorted(_examples()))
def test_fake_agrees_with_real(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for args in _examples()[name]:
        mode = FakeTensorMode()
        fakes = pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
        with mode:
            fake = REGISTRY[name].call(*fakes)
        assert _types(fake) == _types(REGISTRY[name].call(*args))


@pytest.mark.parametrize("name", sorted(_examples()))
def test_inputs_are_not_written(name: str) -> None:
    for args in _examples()[name]:
        before = pytree.tree_map_only(torch.Tensor, torch.clone, args)
        REGISTRY[name].call(*args)
        for one, two in zip(pytree.tree_leaves(before), pytree.tree_leaves(args)):
            assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_schema_is_plain_and_documented(name: str) -> None:
    schema = REGISTRY[name].call._schema
    assert schema.name == f"qpass::{name}" and not schema.is_mutable
    assert not any(argument.kwarg_only for argument in schema.arguments)
    parameters = REGISTRY[name].meaning.__code__.co_varnames[: REGISTRY[name].meaning.__code__.co_argcount]
    assert [argument.name for argument in schema.arguments] == list(parameters)
    assert len(REGISTRY[name].doc) > 30
