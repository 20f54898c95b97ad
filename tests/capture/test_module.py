"""Plain modules: structures, dims, weights and buffers survive the way to flat tensors and back."""

from __future__ import annotations

import functools
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutput

from qpass.capture.export import export_model
from qpass.errors import InputError

from .models import float_copy

Pair = namedtuple("Pair", "left right")


@dataclass
class Result:
    value: Tensor
    count: int


class Structured(nn.Module):
    """Returns what `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 3)

    def forward(self, x: Tensor, batch: Any = None, *, scale: Tensor | None = None, double: bool = False) -> Any:
        y = self.linear(x)
        if batch is not None:
            y = y + batch["extra"][0] - batch["extra"][1]
        y = y * scale if scale is not None else y
        y = 2 * y if double else y
        results = {
            "tensor": y, "tuple": (y, None, x), "dict": {"b": y, "a": [x, 3]}, "namedtuple": Pair(y, x),
            "dataclass": Result(y, 7), "model_output": BaseModelOutput(last_hidden_state=y),
        }  # fmt: skip
        return results[self.kind]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, Result):
        return type(right) is Result and _same(left.value, right.value) and left.count == right.count
    if isinstance(left, dict):
        return type(left) is type(right) and list(left) == list(right) and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(_same, left, right))
    return left == right


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "namedtuple", "dataclass", "model_output"])
def test_result_structures(kind: str) -> None:
    model = Structured(kind).eval()
    rebuilt, found = float_copy(model, (torch.randn(3, 4),))
    for size in (1, 3, 8):
        x = torch.randn(size, 4)
        assert _same(model(x), rebuilt(x)) and _same(model(x), rebuilt(x=x))
    assert list(found.dims.values()) == ["batch"] and found.prefix == "" and found.call.notes == ()
    assert isinstance(rebuilt, Structured) and rebuilt.kind == kind and not hasattr(rebuilt, "linear")


def test_arguments_in_any_spelling() -> None:
    model = Structured("tensor").eval()
    # scale has as many rows as the batch by chance: only what the model leaves free becomes the batch
    x, extra = torch.randn(3, 4), (torch.randn(3, 3), torch.randn(3, 3))
    rebuilt, found = float_copy(model, (x, {"extra": extra}), {"scale": torch.ones(3), "double": True})
    assert [spec.name for spec in found.call.inputs] == ["x", "batch['extra'][0]", "batch['extra'][1]", "scale"]
    x, extra, scale = torch.randn(5, 4), (torch.randn(5, 3), torch.randn(5, 3)), torch.randn(3)
    want = model(x, {"extra": extra}, scale=scale, double=True)
    assert torch.equal(rebuilt(double=True, batch={"extra": extra}, scale=scale, x=x), want)
    flat = found.call.flatten((x,), {"batch": {"extra": extra}, "scale": scale, "double": True})
    assert [t.data_ptr() for t in flat] == [t.data_ptr() for t in (x, *extra, scale)]


class Decorated(nn.Module):
    """Its forward adds an argument by name that it does not find there, as the decorators of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def add(forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["double"] = kwargs.get("double") is not False
            return forward(self, *args, **kwargs)

        return wrapped

    @add
    def forward(self, x: Tensor, scale: Tensor | None = None, double: bool | None = None) -> Tensor:
        y = self.linear(x) if scale is None else self.linear(x) * scale
        return 2 * y if double else y


@pytest.mark.parametrize("double", [None, False])
def test_what_is_named_stays_named(double: bool | None) -> None:
    model = Decorated().eval()
    rebuilt, _ = float_copy(model, (torch.randn(3, 4),), {} if double is None else {"double": False})
    x, call = torch.randn(5, 4), {} if double is None else {"double": False}
    assert torch.equal(rebuilt(x, **call), model(x, **call)) and torch.equal(rebuilt(x=x, **call), model(x, **call))
    rebuilt, _ = float_copy(model, (), {"x": torch.randn(3, 4), "scale": torch.ones(3), **call})
    assert torch.equal(rebuilt(x, torch.ones(3), **call), model(x, **call))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({"x": torch.ones(2, 5)}, "`x` is float32[2, 5], the compiled model takes float32[batch, 4]"),
        ({"x": torch.ones(2, 4).double()}, "`x` is float64[2, 4], the compiled model takes float32[batch, 4]"),
        ({"x": [1.0]}, "`x` is list(1.0), the model was compiled for tensor"),
        ({"x": torch.ones(0, 4)}, "`x` is float32[0, 4], the compiled model takes float32[batch, 4] where batch is at"),
        ({"x": torch.ones(2, 4), "double": True}, "`double` is True, the model was compiled for False"),
        ({"x": torch.ones(2, 4), "scale": torch.ones(3)}, "`scale` is float32[3], the model was compiled for None"),
        ({"x": torch.ones(2, 4), "batch": {"extra": 1}}, "`batch` is {'extra': 1}, the model was compiled for"),
        ({}, "The call does not fit the model's forward: missing a required argument: 'x'"),
    ],
)
def test_bad_calls(call: dict[str, Any], text: str) -> None:
    rebuilt, _ = float_copy(Structured("tensor").eval(), (torch.randn(3, 4),))
    with pytest.raises(InputError) as error:
        rebuilt(**call)
    assert text in str(error.value)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1).sum(1)


def test_users_dynamic_shapes_and_their_names() -> None:
    rows, columns = Dim("rows", min=3, max=10), Dim("columns")
    for shapes in ({"x": {0: rows, 1: columns}, "y": {0: rows}}, ({0: rows, 1: columns}, {0: rows})):
        example = (torch.randn(4, 5), torch.randn(4, 6))
        rebuilt, found = float_copy(TwoInputs().eval(), example, dynamic_shapes=shapes)
        assert sorted(found.dims.values()) == ["columns", "rows"]
        assert [spec.shape for spec in found.call.inputs] == [("rows", "columns"), ("rows", 6)]
        x, y = torch.randn(7, 9), torch.randn(7, 6)
        assert torch.equal(rebuilt(x, y), TwoInputs()(x, y))
        with pytest.raises(InputError, match=r"`y` is float32\[6, 6\].*where rows is 7"):
            rebuilt(x, y[:6])
        with pytest.raises(InputError, match="where rows is from 3 to 10"):
            rebuilt(torch.randn(11, 9), torch.randn(11, 6))


def test_derived_dims_are_checked() -> None:
    half = Dim("half", min=2)
    shapes = {"x": {0: half}, "y": {0: 2 * half}}

    class Join(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, x]) + y

    rebuilt, found = float_copy(Join().eval(), (torch.randn(3, 2), torch.randn(6, 2)), dynamic_shapes=shapes)
    assert found.call.inputs[1].shape == ("2*half", 2)
    assert rebuilt(torch.randn(5, 2), torch.randn(10, 2)).shape == (10, 2)
    with pytest.raises(InputError, match=r"where 2\*half is 10"):
        rebuilt(torch.randn(5, 2), torch.randn(9, 2))


def test_a_batch_of_one_becomes_dynamic() -> None:
    _, found = float_copy(Structured("tensor").eval(), (torch.randn(1, 4),))
    assert found.call.inputs[0].shape == ("batch", 4)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 2, 2)


def test_static_sizes_come_with_the_reason() -> None:
    captured = export_model(FixedBatch().eval(), (torch.randn(3, 4),))
    assert captured.call.inputs[0].shape == (3, 4) and captured.dims == {}
    assert captured.call.notes == (
        "all sizes are static, as a dynamic batch fails: Constraints violated (batch): You marked batch as dynamic but "
        "your code specialized it to be a constant (3)",
    )


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"x": {0: Dim("rows")}}, "dynamic_shapes do not hold for FixedBatch: Constraints violated (rows)"),
        ({"z": None}, "dynamic_shapes names `z`, which is no argument of the example call"),
        (({0: Dim("rows")}, None), "dynamic_shapes has 2 entries for 1 arguments"),
        (3, "dynamic_shapes is a int"),
    ],
)
def test_bad_dynamic_shapes(shapes: Any, text: str) -> None:
    with pytest.raises(InputError) as error:
        export_model(FixedBatch().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)
    assert text in str(error.value)


class Shared(nn.Module):
    """A tied weight, a module called twice, both kinds of buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.twice = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU())
        self.register_buffer("shift", torch.randn(4))
        self.register_buffer("hidden", torch.randn(4), persistent=False)
        self.loose = torch.randn(4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.twice(self.embed(ids) + self.shift)
        return self.head(self.twice(x) * self.hidden + self.loose + torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_tied_shared_and_constant_tensors() -> None:
    model = Shared().eval()
    rebuilt, found = float_copy(model, (torch.randint(10, (3, 5)),))
    ids = torch.randint(10, (6, 5))
    assert torch.equal(rebuilt(ids), model(ids))
    exported = found.exported
    lifted = {spec.target for spec in exported.graph_signature.input_specs}
    assert {"shift", "hidden", "twice.0.weight", "twice.1.weight"} <= lifted
    assert exported.state_dict["embed.weight"] is exported.state_dict["head.weight"]
    stacks = [node.meta["nn_module_stack"] for node in exported.graph.nodes if "nn_module_stack" in node.meta]
    assert any(path.startswith("twice.0") for stack in stacks for path, _ in stack.values())


def test_without_tensors_in_float_or_without_parameters() -> None:
    class Ids(nn.Module):
        def forward(self, ids: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
            return ids + sum(more) + named["last"]

    x = torch.arange(6).view(3, 2)
    rebuilt, found = float_copy(Ids().eval(), (x, x, x), {"last": x})
    assert [spec.name for spec in found.call.inputs] == ["ids", "more[0]", "more[1]", "last"]
    y = torch.arange(8).view(4, 2)
    assert torch.equal(rebuilt(y, y, y, last=y), 4 * y)
    assert found.call.inputs[3].shape == ("batch", 2)
    rows = {0: Dim("rows")}
    for shapes in ({"ids": rows, "named": {"last": rows}}, {"ids": rows, "last": rows}):
        _, found = float_copy(Ids().eval(), (x,), {"last": x}, dynamic_shapes=shapes)
        assert list(found.dims.values()) == ["rows"]


def test_strict_mode() -> None:
    model = Structured("dict").eval()
    rebuilt, _ = float_copy(model, (torch.randn(3, 4),), strict=True)
    x = torch.randn(2, 4)
    assert _same(model(x), rebuilt(x))
