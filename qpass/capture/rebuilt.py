"""The module that a user gets back: their class and config, with the compiled program in place of the weights."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from qpass.capture.causal_call import CausalLMCall, store
from qpass.capture.convention import CallConvention
from qpass.capture.integer_call import IntegerCall
from qpass.capture.integer_generate import generate
from qpass.capture.module_call import ModuleCall
from qpass.errors import InputError, UnsupportedError

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
_COPIED = ("config", "generation_config")


class Compiled:
    """Mixed into a subclass of the user's class: weights live in `_qpass_runner`, and nothing moves or trains."""

    _qpass_compiled = True

    def train(self, mode: bool = True) -> Any:
        """`train(False)` and `eval()` do nothing; training raises InputError."""
        if mode:
            fix = "train the float model and compile again"
            raise InputError("A compiled model cannot be put into training mode", fix=fix)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Everything that moves or casts a module comes here; only what changes nothing is let through."""
        device, dtype = self._qpass_device, self._qpass_dtype
        try:
            moved = fn(torch.empty(0, device=device, dtype=dtype))
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"A compiled model cannot be moved: {error}", fix=_RECOMPILE) from error
        if moved.device != device:
            what = f"A compiled model cannot be moved from {device} to {moved.device}"
            raise UnsupportedError(what, fix=_RECOMPILE)
        if moved.dtype != dtype:
            what = f"A compiled model cannot be cast from {dtype} to {moved.dtype}"
            raise UnsupportedError(what, fix="cast the float model and compile again")
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The runner's state: the compiled weights."""
        return self._qpass_runner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the runner."""
        return self._qpass_runner.load_state_dict(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Raises UnsupportedError: the folder would not load as a float model."""
        fix = "keep the float checkpoint, and compile again after loading it"
        raise UnsupportedError("A compiled model is not a transformers checkpoint", fix=fix)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters of the float model that this was compiled from; none of them is trainable."""
        total, embeddings = self._qpass_sizes
        return 0 if only_trainable else total - embeddings * exclude_embeddings


_RECOMPILE = "compile the float model again for that target"


def rebuild(model: nn.Module, call: CallConvention, runner: nn.Module) -> nn.Module:
    """A module with `model`'s interface whose forward runs `runner(*flat_tensors) -> flat outputs`.

    The result is an instance of a subclass of `type(model)`, so isinstance, `config` and `generate` work. It refers to
    no parameter of `model`. Plain attributes are carried over, the config is copied; submodules are gone.
    """
    base = type(model)
    body: dict[str, Any] = {"forward": _forward_for(base, call), "__module__": base.__module__}
    body["__signature__"] = inspect.signature(base)
    if isinstance(model, PreTrainedModel):
        body["device"] = property(lambda self: self._qpass_device)
        body["dtype"] = property(lambda self: self._qpass_dtype)
    if isinstance(call, IntegerCall):
        body["generate"] = generate
    cls = type(base)(f"Compiled{base.__name__}", (Compiled, base), body)
    rebuilt = nn.Module.__new__(cls)
    nn.Module.__init__(rebuilt)
    # Past user-defined __setattr__: what is set here is ours.
    for name, value in _carried(model).items():
        object.__setattr__(rebuilt, name, value)
    floats = (t.dtype for t in model.parameters() if t.is_floating_point())
    own = {
        "training": False,
        "_qpass_call": call,
        "_qpass_device": call.device,
        "_qpass_dtype": next(floats, torch.get_default_dtype()),
        "_qpass_sizes": _sizes(model),
    }
    for name, value in own.items():
        object.__setattr__(rebuilt, name, value)
    nn.Module.__setattr__(rebuilt, "_qpass_runner", runner)
    return rebuilt


def _carried(model: nn.Module) -> dict[str, Any]:
    """The plain attributes of `model`: no modules, no tensors, nothing that could hold one."""
    machinery = set(nn.Module().__dict__)
    carried = {}
    for name, value in model.__dict__.items():
        if name in machinery or name == "forward":
            continue
        if name in _COPIED:
            carried[name] = copy.deepcopy(value)
        elif _is_plain(value):
            carried[name] = copy.copy(value)
    return carried


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, _SIMPLE)


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Number of parameter elements, and how many of them belong to embedding modules."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    sizes = [(id(p), p.numel()) for p in model.parameters()]
    return sum(size for _, size in sizes), sum(size for key, size in sizes if key in tables)


def _forward_for(base: type[nn.Module], call: CallConvention) -> Callable[..., Any]:
    if isinstance(call, CausalLMCall):
        run = _causal_forward
    elif isinstance(call, ModuleCall) and call.kind == "encoder":
        run = _encoder_forward
    else:
        run = _module_forward

    @functools.wraps(base.forward)  # generate() reads the signature to decide what to pass
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, self._qpass_call, args, kwargs)

    return forward


def _module_forward(self: Any, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call.run(self._qpass_runner, args, kwargs)


def _encoder_forward(self: Any, call: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wanted = call.bind(args, kwargs).get("return_dict")
    output = call.run(self._qpass_runner, args, kwargs)
    as_dict = call.return_dict if wanted is None else wanted
    return output if as_dict else output.to_tuple()


def _causal_forward(self: Any, call: CausalLMCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    arguments = call.bind(args, kwargs)
    labels = arguments.get("labels")
    # What the model's loss takes and forward does not name, e.g. num_items_in_batch.
    extra = {n: v for n, v in arguments.items() if labels is not None and n not in call.signature.parameters}
    flat = call.flatten_bound(arguments, frozenset(extra))
    logits, kv = call.results(self._qpass_runner(*flat))
    loss = None
    if labels is not None:
        vocab = self.config.get_text_config(decoder=True).vocab_size
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **extra)
    cache = _updated_cache(call, arguments, kv)
    output = call.output(cache, loss=loss, logits=logits)
    wanted = arguments.get("return_dict")
    return output if (call.return_dict if wanted is None else wanted) else output.to_tuple()


def _updated_cache(call: CausalLMCall, arguments: dict[str, Any], kv: list[Tensor]) -> DynamicCache | None:
    """The caller's cache, updated in place as transformers does; a new one if there was none and it is wanted."""
    cache, use_cache = arguments.get(call.cache_argument), arguments.get("use_cache")
    if cache is None and not (call.use_cache if use_cache is None else use_cache):
        return None
    cache = DynamicCache() if cache is None else cache
    store(cache, kv)
    return cache
