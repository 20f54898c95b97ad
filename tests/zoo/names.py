"""Which architectures there are, found through the auto mappings of the installed transformers."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import transformers as hf
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# in order of preference: of a seq2seq model, the causal LM is the decoder alone, without its cross-attention
MAPPINGS = (
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
# models of every kind: only those that read token ids are taken from here
BASE = auto.MODEL_MAPPING_NAMES
# what stands for a text model inside of a larger one; it is an architecture of its own
_INNER = ("text_config", "decoder", "llm_config")
# no text model of its own; wants pictures or another model's states; makes sound of random noise
_NOT_TEXT = {"encoder-decoder", "gemma4_assistant", "layoutlmv2", "lxmert", "vilt", "voxtral_realtime", "vits",
             "fastspeech2_conformer"}


@functools.cache
def architectures() -> list[str]:
    """Model types with a text model of their own, sorted. A multimodal type whose text model is one of these is not."""
    heads = {name for mapping in MAPPINGS for name in mapping}
    bases = {name for name in BASE if name not in heads and _reads_tokens(name)}
    found = (heads | bases) - _NOT_TEXT
    return sorted(name for name in found if not _is_wrapper(name, found))


def model_class(name: str) -> type:
    """The class with the most specific head: seq2seq LM, else causal LM, else masked LM, else the bare model."""
    for mapping in (*MAPPINGS, BASE):
        if name in mapping:
            found = mapping[name]
            return getattr(hf, found if isinstance(found, str) else found[0])
    raise KeyError(name)


def _is_wrapper(name: str, found: set[str]) -> bool:
    """Whether all the text of this type is read by a model of another type of the list."""
    inner = getattr(CONFIG_MAPPING[name], "sub_configs", {})
    for part in _INNER:
        if part not in inner or "encoder" in inner:
            continue
        config = inner[part]
        kind = getattr(config, "model_type", "")
        if not kind:  # AutoConfig: which one is in the default config
            kind = getattr(getattr(_default(name), part, None), "model_type", "")
        if kind != name:
            return kind in found
    return False


def _default(name: str) -> Any:
    try:
        return CONFIG_MAPPING[name]()
    except StrictDataclassError:  # a default that its own validation refuses
        return None


def _reads_tokens(name: str) -> bool:
    config = CONFIG_MAPPING[name]
    if not hasattr(config, "vocab_size") or config.sub_configs:
        return False
    try:
        parameters = list(inspect.signature(model_class(name).forward).parameters)
    except (AttributeError, ImportError, KeyError):
        return False
    return len(parameters) > 1 and parameters[1] == "input_ids"
