"""A Hugging Face causal LM as one graph for prefill and decode, with the key/value cache as flat tensors.

    before: model(input_ids, attention_mask, position_ids, cache=DynamicCache)
    after:  graph(input_ids, attention_mask, position_ids, keep, k0, v0, ...) -> (logits, k0, v0, ...)

Recognised by what the model can do, never by its name. Every layer gets a plain growing cache: a sliding window is
done by the attention mask, so `past` is one size for all layers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from qpass.capture.blame import capture_error, user_line
from qpass.capture.cache_name import NEW, cache_argument, cache_field, returned_cache
from qpass.capture.causal_call import CausalLMCall, KVSpec, default_positions
from qpass.capture.convention import TensorSpec
from qpass.capture.trace import dim_names, dim_ranges, readable_shape, trace, user_inputs
from qpass.errors import CaptureError, UnsupportedError

PREFIX = "m."
# Odd, different from each other and from usual head counts, so that no size is taken for another one's.
BATCH, SEQ, PAST, KEEP = 3, 5, 7, 2


class FlatCausalLM(nn.Module):
    """`m` with flat tensors in and out. Key/value k_i: [batch, heads, past, head_dim] in, [.., past + seq, ..] out.

    cache_names: the argument of `m` that takes the cache, and the field of its output that holds it.
    """

    def __init__(self, model: nn.Module, *, takes_keep: bool, cache_names: tuple[str, str]) -> None:
        super().__init__()
        self.m = model
        self.takes_keep = takes_keep
        self.argument, self.field = cache_names
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None,
        keep: Tensor,
        kv: dict[str, Tensor],
    ) -> tuple[Tensor, ...]:
        pairs = list(zip(*[iter(kv.values())] * 2))
        # Said out loud, so that the mask's length is the expression past + seq and not one more symbol with a range.
        torch._check(attention_mask.shape[1] == pairs[0][0].shape[2] + input_ids.shape[1])
        call: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            call["position_ids"] = position_ids
        if self.takes_keep:
            call["logits_to_keep"] = keep
        call[self.argument] = filled_cache(pairs)
        out = self.m(**call, use_cache=True, return_dict=True)
        logits = out.logits if self.takes_keep else out.logits[:, keep]
        return logits, *(t for layer in getattr(out, self.field).layers for t in (layer.keys, layer.values))


def filled_cache(pairs: list[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of plain layers that hold `pairs`; filled by hand, as `update` would first concatenate to nothing."""
    cache = DynamicCache()
    for keys, values in pairs:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def is_causal_lm(model: nn.Module) -> bool:
    """Whether `model` generates text from `input_ids` and keeps a cache, without an encoder."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model.config.is_encoder_decoder:
        return False
    return "input_ids" in inspect.signature(type(model).forward).parameters


def capture_causal_lm(
    model: PreTrainedModel, notes: tuple[str, ...], *, strict: bool
) -> tuple[ExportedProgram, CausalLMCall, dict[str, str]]:
    """Graph, call convention and dim names. Raises UnsupportedError if the model has no plain key/value cache."""
    signature = inspect.signature(type(model).forward)
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    cache_name = cache_argument(signature)
    if cache_name is None or "attention_mask" not in signature.parameters or _only_states(model, cache_name):
        fix = "use a model with attention, or compile its submodules"
        raise UnsupportedError("The language model keeps no key/value cache", where=type(model).__name__, fix=fix)
    output, kv = _probe_cache(model, cache_name)
    takes_positions = "position_ids" in signature.parameters
    args, dims, shapes = _examples(model, kv, takes_positions=takes_positions)
    cache_names = cache_name, cache_field(type(output)) or cache_name
    wrapper = FlatCausalLM(model, takes_keep="logits_to_keep" in signature.parameters, cache_names=cache_names)
    exported = trace(wrapper, args, {}, shapes, strict=strict, owner=model)
    names = dim_names(exported, dims)
    tensors = [(name, value) for name, value in user_inputs(exported) if isinstance(value, Tensor)]
    labels = ["input_ids", "attention_mask", *(["position_ids"] if takes_positions else []), "keep"]
    labels += list(args[-1])
    call = CausalLMCall(
        kind="causal_lm",
        signature=signature,
        inputs=tuple(TensorSpec(n, v.dtype, readable_shape(v.shape, names)) for n, (_, v) in zip(labels, tensors)),
        outputs=("logits", *args[-1]),
        device=model.device,
        ranges=dim_ranges(exported, names),
        notes=notes,
        output_type=type(output),
        kv=kv,
        positions=_probe_positions(model) if takes_positions else None,
        takes_positions=takes_positions,
        use_cache=bool(getattr(model.config.get_text_config(decoder=True), "use_cache", True)),
        return_dict=bool(getattr(model.config, "return_dict", True)),
    )
    return exported, call, names


def _only_states(model: PreTrainedModel, cache_name: str) -> bool:
    """Whether the cache holds states in place of keys and values, as Mamba's; 5.24 gave the two one name."""
    if cache_name != NEW:
        return False
    linear = DynamicCache(config=model.config).is_linear
    return bool(linear) and all(linear)


def _probe_cache(model: PreTrainedModel, cache_name: str) -> tuple[Any, tuple[KVSpec, ...]]:
    """One tiny eager run: the class of the output, and heads, head_dim and dtype of every layer's keys and values."""
    ids = torch.arange(1, 4, device=model.device).expand(2, -1).contiguous()
    try:
        out = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            use_cache=True,
            return_dict=True,
            **{cache_name: DynamicCache()},
        )
    except Exception as error:
        raise capture_error(error, model) from error
    fix = "use a decoder-only model whose layers all keep keys and values"
    cache = returned_cache(out)
    if not isinstance(cache, DynamicCache) or not cache.layers:
        what = f"The model returns {type(cache).__name__} in place of a DynamicCache"
        raise UnsupportedError(what, where=type(model).__name__, fix=fix)
    kv = []
    for index, layer in enumerate(cache.layers):
        pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if type(layer) is not DynamicLayer or any(not isinstance(t, Tensor) or t.shape[::2] != (2, 3) for t in pair):
            what = "A layer's cache is not a key and a value of shape [batch, heads, tokens, head_dim]"
            raise UnsupportedError(what, where=f"layer {index} of {type(model).__name__}", fix=fix)
        kv += [KVSpec(f"{n}{index}", t.shape[1], t.shape[3], t.dtype) for n, t in zip("kv", pair)]
    return out, tuple(kv)


def _probe_positions(model: PreTrainedModel) -> str | None:
    """How the model fills `position_ids=None`: found by comparing logits on a left-padded batch; None if unknown."""
    ids = torch.arange(1, 5, device=model.device).expand(2, -1).contiguous()
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], device=model.device)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "return_dict": True}
    try:
        expected = model(**call).logits
        for rule in ("arange", "mask"):
            got = model(**call, position_ids=default_positions(rule, mask, past=0)).logits
            if torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True):
                return rule
    except Exception as error:
        what = f"The model fails on a left-padded batch: {error}"
        fix = "check that model(input_ids, attention_mask) runs with zeros at the left of the mask"
        raise CaptureError(what, where=user_line(error), fix=fix) from error
    return None


def _examples(
    model: PreTrainedModel, kv: tuple[KVSpec, ...], *, takes_positions: bool
) -> tuple[tuple[Any, ...], list[dict[int, str]], tuple[Any, ...]]:
    """Example inputs of the wrapper, the dim names of each flat tensor, and torch.export's dynamic_shapes."""
    batch, seq, past, keep = Dim("batch", min=1), Dim("seq", min=1), Dim("past", min=0), Dim("keep", min=0)
    device = model.device
    ids = torch.arange(1, 1 + BATCH * SEQ, device=device).view(BATCH, SEQ)
    ids = ids % model.config.get_text_config(decoder=True).vocab_size
    mask = torch.ones(BATCH, PAST + SEQ, dtype=torch.int64, device=device)
    positions = torch.arange(PAST, PAST + SEQ, device=device).repeat(BATCH, 1) if takes_positions else None
    cache = {s.name: torch.zeros(BATCH, s.heads, PAST, s.head_dim, dtype=s.dtype, device=device) for s in kv}
    args = (ids, mask, positions, torch.arange(KEEP, device=device), cache)
    shapes = (
        {0: batch, 1: seq},
        {0: batch, 1: Dim.AUTO},
        {0: batch, 1: seq} if takes_positions else None,
        {0: keep},
        {s.name: {0: batch, 2: past} for s in kv},
    )
    dims: list[dict[int, str]] = [{0: "batch", 1: "seq"}, {0: "batch"}]
    dims += [{0: "batch", 1: "seq"}] if takes_positions else []
    dims += [{0: "keep"}, *({0: "batch", 2: "past"} for _ in kv)]
    return args, dims, shapes
