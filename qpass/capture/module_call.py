"""The call convention of plain modules and encoders: pytrees between the user's form and flat tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qpass.capture.convention import CallConvention
from qpass.errors import InputError, UnsupportedError

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Constant:
    """A non-tensor leaf of the inputs or outputs; the graph holds for this value only."""

    value: Any


@dataclass(frozen=True)
class ModuleCall(CallConvention):
    """CallConvention of a module whose arguments and result are pytrees of tensors and constants.

    Args:
        in_spec: pytree structure of (args, kwargs) as `canonical` orders them.
        leaves: for each leaf of `in_spec` the name to show, and its constant or None for a tensor.
        out_spec: pytree structure of the result.
        constants: for each leaf of the result its constant, or None for a tensor.
        fill: encoder inputs that may be left out: name -> value of each element, shaped as input_ids.
        return_dict: the encoder's default; None for modules that do not know it.
    """

    in_spec: pytree.TreeSpec
    leaves: tuple[tuple[str, Constant | None], ...]
    out_spec: pytree.TreeSpec
    constants: tuple[Constant | None, ...]
    fill: Mapping[str, int] = field(default_factory=dict)
    return_dict: bool | None = None

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of a call, in graph order. Raises InputError for another structure, dtype, size or constant."""
        if self.kind == "encoder":
            args, kwargs = (), self._encoder_arguments(self.bind(args, kwargs))
        else:
            self.bind(args, kwargs)
            args, kwargs = canonical(self.signature, args, kwargs, self.in_spec.child(0).num_children)
        values, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            raise self._structure_error(args, kwargs)
        tensors: list[Tensor] = []
        for (name, constant), value in zip(self.leaves, values):
            if constant is None:
                tensors.append(value)
            elif type(value) is not type(constant.value) or value != constant.value:
                fix = f"pass {constant.value!r}, or compile again with this value in the example inputs"
                raise InputError(f"`{name}` is {_show(value)}, the model was compiled for {constant.value!r}", fix=fix)
        return self.check(tensors)

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The result in the user's own structure: dataclass, ModelOutput, namedtuple, dict, tuple or tensor."""
        given = list(outputs)
        if len(given) != len(self.constants):  # a runner may leave constants out
            rest = iter(given)
            given = [constant.value if constant else next(rest) for constant in self.constants]
        leaves = [constant.value if constant else value for constant, value in zip(self.constants, given)]
        return pytree.tree_unflatten(leaves, self.out_spec)

    def _encoder_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        wanted = [spec.name for spec in self.inputs]
        for name, value in arguments.items():
            default = self.signature.parameters.get(name)
            plain = value is None or value is False or (default is not None and value is default.default)
            if name in wanted or name == "return_dict" or plain:
                continue
            fix = f"leave {name} out, or compile with example inputs that have it"
            raise UnsupportedError(f"The compiled model does not take `{name}`", fix=fix)
        ids = arguments.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            fix = "pass a batch of token ids, int64[batch, seq]"
            raise InputError(f"`input_ids` is {_show(ids)}, it must be int64[batch, seq]", fix=fix)
        complete: dict[str, Any] = {}
        for name in wanted:
            given = arguments.get(name)
            if given is None:
                given = torch.full(ids.shape, self.fill[name], dtype=torch.int64, device=self.device)
            complete[name] = given.to(torch.int64) if isinstance(given, Tensor) else given
        return {**complete, "return_dict": True}

    def _structure_error(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> InputError:
        example_args, example_kwargs = pytree.tree_unflatten([n for n, _ in self.leaves], self.in_spec)
        want = by_parameter(self.signature, example_args, example_kwargs)
        got = by_parameter(self.signature, args, kwargs)
        fix = "call it with the structure of the example inputs, or compile again with this one"
        for name in [*want, *(name for name in got if name not in want)]:
            if name not in got:
                return InputError(f"`{name}` is missing, the example inputs had it", fix=fix)
            if name not in want:
                return InputError(f"`{name}` was not in the example inputs", fix=fix)
            if pytree.tree_structure(want[name]) != pytree.tree_structure(got[name]):
                what = f"`{name}` is {_show(got[name])}, the model was compiled for {_show(want[name], leaf='tensor')}"
                return InputError(what, fix=fix)
        return InputError("The arguments have another structure than the example inputs", fix=fix)


def canonical(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any], positional: int
) -> tuple[tuple, dict]:
    """One spelling for all ways to write the same call: the first ``positional`` by position, plain defaults filled in.

    What the example call names stays named: a decorator around forward, as transformers has them, may add an argument
    by name that it finds missing there.
    """
    bound = signature.bind(*args, **kwargs)
    for name, parameter in signature.parameters.items():
        if name not in bound.arguments and isinstance(parameter.default, _PLAIN):
            bound.arguments[name] = parameter.default
    by_position: list[Any] = []
    by_name: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name not in bound.arguments:
            positional = 0  # none can follow
            continue
        value = bound.arguments[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            by_position += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            by_name |= value
        elif parameter.kind is parameter.POSITIONAL_ONLY or len(by_position) < positional:
            by_position.append(value)
        else:
            by_name[name] = value
    return tuple(by_position), by_name


def by_parameter(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, in graph order; `*args` is one tuple, the members of `**kwargs` stand alone."""
    arguments: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    return arguments


def leaf_names(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A readable name of every leaf of (args, kwargs): `x`, `batch['mask']`, `pair[1]`."""
    names: list[str] = []
    for name, value in by_parameter(signature, args, kwargs).items():
        names += [name + pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(value)[0]]
    return names


def _show(value: Any, leaf: str | None = None) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_show(v, leaf)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(_show(v, leaf) for v in value)})"
    return leaf if leaf is not None and isinstance(value, str) else repr(value)
