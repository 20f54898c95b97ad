"""A tiny config of any model type, from its default one: fields by name, the odd ones from a table."""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.zoo.odd import ODD

VOCAB, HIDDEN, HEADS, KV, HEAD, FFN, LAYERS, EXPERTS, LENGTH = 64, 32, 4, 2, 16, 48, 2, 4, 64

# field name -> value, where the default config has the field and it is not None
_BY_NAME: tuple[tuple[str, int], ...] = (
    (r"vocab_size|vocab_size_per_layer_input|src_vocab_size|tgt_vocab_size|entity_vocab_size|text_vocab_size", VOCAB),
    (r"hidden_size|d_model|n_embd|dim|word_embed_proj_dim|emb_dim|embed_dim|d_embed", HIDDEN),
    (r"embedding_size|entity_emb_size|hidden_size_per_layer_input|ple_dim|projection_dim", 16),
    (r"(num|encoder|decoder|n)_(attention_)?heads?|num_(encoder|decoder)_attention_heads|num_attn_heads", HEADS),
    (r"(num_)?(key_value_heads|kv_heads|global_key_value_heads|n_head_kv)", KV),
    (r"head_dim|attention_head_dim|global_head_dim|swa_head_dim|kv_channels", HEAD),
    (r"d_kv|qk_nope_head_dim|v_head_dim|index_head_dim|head_size", 8),
    (r"qk_rope_head_dim", 4),
    (r"qk_head_dim", 12),
    (r"[qko]v?_lora_rank|\w*_lora_rank|low_rank_dim", 16),
    (r"(\w+_)?(intermediate_size|ffn_dim|ffn_hidden_size|ff_dim|inner_dim|n_inner|d_ff|mlp_dim|hidden_dim)", FFN),
    (r"intermediate_size_mlp|intermediate_dim|ffn_size|dim_feedforward", FFN),
    (r"moe_intermediate_size|expert_ffn_hidden_size|shared_expert_intermediate_size|moe_ffn_dim", 24),
    (r"(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks)", LAYERS),
    (r"max_position_embeddings|n_positions|n_ctx|max_(source|target|decoder|encoder)_position(s|_embeddings)", LENGTH),
    (r"max_seq_len|max_sequence_length|seq_length|max_seq_length|context_length", LENGTH),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|n_experts", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|num_selected_experts|experts_per_token|num_topk", 2),
    (r"n_group|num_expert_group", 2),
    (r"topk_group|n_limited_groups", 1),
    (r"n_shared_experts|num_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers|first_dense_layers", 1),
    (r"sliding_window|sliding_window_size|window_size|attention_window|local_attention|attention_chunk_size", 4),
    (r"index_topk|index_topk_tokens", 4),
    (r"index_n_heads", 2),
    (r"linear_num_(key_|value_)?heads", HEADS),
    (r"linear_(key_|value_)?head_dim", 8),
    (r"mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_d_head|mamba_head_dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"(mamba_)?chunk_size|mamba_chunk_size", 4),
    (r"(mamba_)?n_groups", 1),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"relative_attention_num_buckets", 8),
    (r"relative_attention_max_distance", 16),
)
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def tiny_config(name: str) -> Any:
    """A config of two or so layers, 32 wide. Every kind of layer that the default has is there once at least."""
    odd = ODD.get(name, {})
    config = _shrink(CONFIG_MAPPING[name], odd)
    return getattr(config, odd["_part"]) if "_part" in odd else config


def _shrink(kind: type[PreTrainedConfig], odd: dict[str, Any]) -> Any:
    default = kind(**odd.get("_default", {}))
    fields = default.to_dict()
    changes = {key: value for key, value in ((key, _small(key, value)) for key, value in fields.items())
               if value is not None}
    changes |= _layer_lists(fields)
    for part in getattr(kind, "sub_configs", {}):
        inner = getattr(default, part, None)
        if isinstance(inner, PreTrainedConfig):
            changes[part] = _shrink(type(inner), odd.get(part, {}))
    if "kv_lora_rank" in fields:  # latent attention: every head has its own keys, and only a part of them rotates
        changes |= {key: value for key, value in (("num_key_value_heads", HEADS), ("head_dim", 4)) if key in changes}
    changes |= {key: value for key, value in odd.items() if key not in getattr(kind, "sub_configs", {})}
    changes = {key: value for key, value in changes.items() if not key.startswith("_")}
    if "use_cache" in fields:  # not every head's forward hands on the argument
        changes["use_cache"] = False
    if fields.get("tie_word_embeddings"):
        changes.setdefault("tie_word_embeddings", False)
    changes = {key: value for key, value in changes.items() if value is not ...}  # ... leaves the default
    return kind(**changes)


def _small(key: str, value: Any) -> Any:
    """The tiny value of one field, or None to leave it."""
    if isinstance(value, bool) or value is None:
        return None
    if key.endswith(("token_id", "token_index")) and isinstance(value, int):
        return _SPECIAL.get(key, 3)
    if isinstance(value, list) and key.endswith("token_id"):
        return _SPECIAL.get(key, 3)
    if isinstance(value, int):
        return next((small for pattern, small in _BY_NAME if re.fullmatch(pattern, key)), None)
    if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _rope(value)
    return None


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _rope(item) if isinstance(item, dict) else [4, 2, 2] if key == "mrope_section" else item
            for key, item in value.items()}


def _layer_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists with an entry per layer, cut so that each has all its distinct entries; and the number of layers."""
    count = next((fields[key] for key in _LAYER_COUNTS if isinstance(fields.get(key), int)), None)
    lists = {key: value for key, value in fields.items()
             if isinstance(value, list | tuple) and len(value) == count and not key.startswith("_")}
    if not lists:
        return {}
    distinct = {key: list(dict.fromkeys(value)) for key, value in lists.items()}
    layers = max(LAYERS, *(len(values) for key, values in distinct.items() if key.endswith("types")), 0)
    cut = {key: (values + [values[-1]] * layers)[:layers] for key, values in distinct.items()}
    return {**cut, **{key: layers for key in _LAYER_COUNTS if key in fields}}
