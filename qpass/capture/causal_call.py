"""The call convention of a causal LM: caches, masks and positions between the user's form and flat tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from qpass.capture.cache_name import OLD, cache_argument, cache_field
from qpass.capture.convention import CallConvention, TensorSpec
from qpass.errors import InputError, UnsupportedError

# Arguments that only ask for another result; False and None mean "not asked".
_ASK = ("output_attentions", "output_hidden_states", "output_router_logits")
_KNOWN = {
    "input_ids", "attention_mask", "position_ids", "labels", "use_cache", "logits_to_keep", "num_logits_to_keep",
    "return_dict", "cache_position",
}  # fmt: skip


@dataclass(frozen=True)
class KVSpec:
    """One key or value tensor of the cache, [batch, heads, past, head_dim]."""

    name: str
    heads: int
    head_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class CausalLMCall(CallConvention):
    """CallConvention of a causal LM.

    Args:
        output_type: the ModelOutput class that the model returns.
        kv: the cache tensors k0, v0, k1, v1, ...
        positions: how the model fills position_ids=None: `arange`, `mask` (counted over unmasked tokens), or None.
        takes_positions: whether position_ids is an input of the graph.
        use_cache, return_dict: the model's defaults.
    """

    output_type: type
    kv: tuple[KVSpec, ...]
    positions: str | None
    takes_positions: bool
    use_cache: bool
    return_dict: bool

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """The cache: the last inputs, and the outputs after the logits."""
        first = len(self.inputs) - len(self.kv)
        return tuple((first + number, 1 + number) for number in range(len(self.kv)))

    @property
    def cache_argument(self) -> str:
        """What forward calls the cache: capture refuses a model that has no such argument."""
        return cache_argument(self.signature) or OLD

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """As there. A cache under its old name is taken where transformers takes it too, and gets the new name."""
        arguments, name = super().bind(args, kwargs), self.cache_argument
        if name == OLD or OLD not in arguments:
            return arguments
        if name in arguments:
            what = f"The call has `{OLD}` and `{name}`, which are one argument"
            raise InputError(what, fix=f"pass the cache as {name} alone")
        return {**{key: value for key, value in arguments.items() if key != OLD}, name: arguments[OLD]}

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Flat inputs: input_ids, attention_mask, [position_ids], keep, k0, v0, ... Missing ones get their default."""
        return self.flatten_bound(self.bind(args, kwargs))

    def flatten_bound(self, arguments: Mapping[str, Any], extra: frozenset[str] = frozenset()) -> list[Tensor]:
        """As `flatten`, from arguments by name; `extra` names those that the caller handles itself."""
        self._refuse(arguments, extra)
        ids = arguments.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            got = f"{ids.dtype}{list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise InputError(f"`input_ids` is {got}, it must be int64[batch, seq]", fix="pass a batch of token ids")
        ids = ids.to(torch.int64)
        batch, seq = ids.shape
        cache = self.cache_tensors(arguments.get(self.cache_argument), batch)
        past = cache[0].shape[2]
        mask = self._mask(arguments.get("attention_mask"), batch, past, seq)
        flat = [ids, mask]
        if self.takes_positions:
            flat.append(self._positions(arguments.get("position_ids"), mask, past, seq))
        flat.append(kept_rows(arguments.get("logits_to_keep", 0), seq, ids.device))
        flat += cache
        return self.check(flat)

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The model's output with `logits` and a fresh DynamicCache."""
        logits, kv = self.results(outputs)
        cache = DynamicCache()
        store(cache, kv)
        return self.output(cache, logits=logits)

    def output(self, cache: DynamicCache | None, **values: Any) -> Any:
        """The model's output with `cache` in its field for that, and `values` by name."""
        return self.output_type(**values, **{cache_field(self.output_type) or OLD: cache})

    def results(self, outputs: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        """The caller's logits and k0, v0, ... from the graph's flat outputs."""
        return outputs[0], list(outputs[1:])

    def cache_tensors(self, cache: Any, batch: int) -> list[Tensor]:
        """k0, v0, ... held by `cache`; tensors without tokens if it is None or empty. Raises for other caches."""
        name = self.cache_argument
        if cache is None or not _length(check_cache(cache, name)):
            return [torch.empty(batch, s.heads, 0, s.head_dim, dtype=s.dtype, device=self.device) for s in self.kv]
        if 2 * len(cache.layers) != len(self.kv):
            what = f"`{name}` has {len(cache.layers)} layers, the model has {len(self.kv) // 2}"
            raise InputError(what, fix="pass the cache that this model returned")
        for index, layer in enumerate(cache.layers):
            seen = getattr(layer, "cumulative_length", None)
            if isinstance(seen, int) and seen != layer.keys.shape[-2]:
                what = f"`{name}` was already cut to a sliding window, {layer.keys.shape[-2]} of {seen} tokens"
                fix = "start from an empty cache; the compiled model keeps all tokens and masks the window itself"
                raise UnsupportedError(what, where=f"layer {index}", fix=fix)
        return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]

    def _refuse(self, arguments: Mapping[str, Any], extra: frozenset[str]) -> None:
        known = _KNOWN | extra | {self.cache_argument}
        for name, value in arguments.items():
            if name in known or value is None or (name in _ASK and value is False):
                continue
            default = self.signature.parameters.get(name)
            if default is not None and value is default.default:
                continue
            if name in _ASK:
                what = f"`{name}=True` asks for values inside the model, which the compiled graph does not return"
                raise UnsupportedError(what, fix=f"leave {name} out, or ask the float model")
            fix = "pass input_ids" if name == "inputs_embeds" else f"leave {name} out"
            raise UnsupportedError(f"The compiled model does not take `{name}`", fix=fix)

    def _mask(self, mask: Any, batch: int, past: int, seq: int) -> Tensor:
        if mask is None:
            return torch.ones(batch, past + seq, dtype=torch.int64, device=self.device)
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            got = f"a tensor of {mask.dim()} dims" if isinstance(mask, Tensor) else type(mask).__name__
            fix = "pass 1 for tokens and 0 for padding, shape [batch, past + seq]"
            raise UnsupportedError(f"`attention_mask` is {got}, the compiled model takes 2 dims", fix=fix)
        if tuple(mask.shape) != (batch, past + seq):
            want = f"[{batch}, {past + seq}] (batch, {past} past + {seq} new tokens)"
            fix = "pass one entry for every cached and every new token"
            raise InputError(f"`attention_mask` has shape {list(mask.shape)}, expected {want}", fix=fix)
        return mask.to(torch.int64)

    def _positions(self, positions: Any, mask: Tensor, past: int, seq: int) -> Tensor:
        if positions is None and self.positions is None:
            fix = "pass position_ids of shape [batch, seq]"
            raise InputError("The model's own rule for `position_ids` could not be found out at capture", fix=fix)
        if positions is None:
            return default_positions(self.positions, mask, past)
        if not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] != seq:
            got = list(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
            want = f"[{mask.shape[0]}, {seq}] (batch, new tokens)"
            raise InputError(f"`position_ids` has shape {got}, expected {want}", fix="pass positions of new tokens")
        # One row for all sequences is what transformers itself passes when nothing is padded.
        return positions.to(torch.int64).expand(mask.shape[0] if positions.shape[0] == 1 else -1, -1)


def with_rows(call: CausalLMCall, widths: Mapping[str, int]) -> CausalLMCall:
    """The convention with rows of that many bytes, int8, in the named tensors of the cache: k0, v0, ..."""
    inputs = tuple(_as_rows(spec, widths) for spec in call.inputs)
    kv = tuple(replace(spec, head_dim=widths[spec.name], dtype=torch.int8) if spec.name in widths else spec
               for spec in call.kv)  # fmt: skip
    return replace(call, inputs=inputs, kv=kv)


def _as_rows(spec: TensorSpec, widths: Mapping[str, int]) -> TensorSpec:
    if spec.name not in widths:
        return spec
    return replace(spec, dtype=torch.int8, shape=(*spec.shape[:-1], widths[spec.name]))


def default_positions(rule: str | None, mask: Tensor, past: int) -> Tensor:
    """position_ids int64[batch, seq] for `mask` [batch, past + seq]: counted from 0, or over unmasked tokens."""
    if rule == "mask":
        return (mask.cumsum(1) * mask - 1)[:, past:]
    return torch.arange(past, mask.shape[1], device=mask.device).expand(mask.shape[0], -1)


def kept_rows(logits_to_keep: Any, seq: int, device: torch.device) -> Tensor:
    """Rows of the sequence, int64[keep], that `logits_to_keep` means: 0 all, n the last n, a tensor those rows."""
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1:
            got = list(logits_to_keep.shape)
            raise InputError(f"`logits_to_keep` has shape {got}, expected [keep]", fix="pass an int or a 1-D tensor")
        return logits_to_keep.to(torch.int64)
    rows = int(logits_to_keep or 0)
    return torch.arange(max(seq - rows, 0) if rows else 0, seq, device=device)


def check_cache(cache: Any, name: str) -> DynamicCache:
    """`cache`, the argument `name`, if it grows; UnsupportedError for static, quantized, offloaded and tuple caches."""
    plain = isinstance(cache, DynamicCache) and not getattr(cache, "offloading", False)
    if not plain or any(not isinstance(layer, DynamicLayer) for layer in cache.layers):
        kind = f"{type(cache).__name__} (offloading)" if getattr(cache, "offloading", False) else type(cache).__name__
        fix = "pass a transformers.DynamicCache, and leave cache_implementation out of generate()"
        raise UnsupportedError(f"`{name}` is a {kind}", fix=fix)
    return cache


def store(cache: Cache, tensors: Sequence[Tensor]) -> None:
    """Put k0, v0, ... into `cache` in place. Its layers become plain: the whole past stays, masks do windows."""
    cache.layers[len(tensors) // 2 :] = []
    for index, (keys, values) in enumerate(zip(*[iter(tensors)] * 2)):
        if index == len(cache.layers):
            cache.layers.append(DynamicLayer())
        if type(cache.layers[index]) is not DynamicLayer:
            cache.layers[index] = DynamicLayer()
        layer = cache.layers[index]
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values


def _length(cache: DynamicCache) -> int:
    return cache.get_seq_length() if cache.layers else 0
