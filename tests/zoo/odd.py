"""What the rules by field name do not get right, per model type.

``...`` leaves a field at its default; a dict under the name of an inner config is for that one. ``_part`` names the
inner config that the model takes, ``_default`` what the default config must be made with, ``_inputs`` extra arguments.
"""

from __future__ import annotations

from typing import Any

import torch

_MROPE_HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}

ODD: dict[str, dict[str, Any]] = {
    "blt": {  # patch lengths are given: finding them takes as many steps as the text says
        "_inputs": {"patch_lengths": torch.tensor([[1, 2, 2, 1], [1, 1, 3, 1]])},
        "encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4], "patch_in_forward": True,
        **{part: {"num_key_value_heads": 4, "head_dim": 8} for part in ("patcher_config", "global_config")},
        "encoder_config": {"num_key_value_heads": 4, "head_dim": 8},
        "decoder_config": {"num_key_value_heads": 4, "head_dim": 8, "hidden_size_global": 32},
    },
    "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE | {"mrope_section": [4, 2, 2]}}},
    "cpmant": {"dim_head": 8, "dim_ff": 48, "prompt_length": 4},
    "ctrl": {"dff": 48},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "emu3": {"_part": "text_config"},
    "esm": {"vocab_size": 64, "mask_token_id": 3, "pad_token_id": 0},
    "esmc": {"num_key_value_heads": 4, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fsmt": {"_inputs": {"decoder_attention_mask": torch.ones(2, 6, dtype=torch.int64)}},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 8, "d_inner": 48},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "laurel_rank": 8,
    },
    "glm4v_moe_text": {"head_dim": 16, "rope_parameters": _MROPE_HALF},
    "glm4v_text": {"head_dim": 16, "rope_parameters": _MROPE_HALF},
    "glm5_next_text": {"num_key_value_heads": 4, "index_kpool": 2, "qk_rope_head_dim": 0, "qk_head_dim": 8},
    "glm_image_text": {"head_dim": 16, "rope_parameters": _MROPE_HALF},
    "glm_ocr_text": {"head_dim": 16, "rope_parameters": _MROPE_HALF},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "helium": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl_text": {"head_dim": 16, "rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "visual_embed": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48, "num_attention_heads": 4, "_inputs": {"bbox": torch.arange(48).reshape(2, 6, 4)}},
    "markuplm": {"max_xpath_tag_unit_embeddings": 8, "max_xpath_subs_unit_embeddings": 8, "tag_pad_id": 7,
                 "subs_pad_id": 7, "max_depth": 4, "xpath_unit_hidden_size": 8},
    "ministral": {"head_dim": 16},
    "longcat_flash": {"zero_expert_num": 2},
    "mpnet": {"relative_attention_num_buckets": ...},
    "muse_spark_text": {"moe_hidden_size": 16, "num_experts_per_tok": 3},
    "musicgen": {"_part": "decoder", "decoder": {"num_codebooks": 2, "audio_channels": 1}},
    "musicgen_melody": {"_part": "decoder", "decoder": {"num_codebooks": 2, "audio_channels": 1}},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 32},
    "qwen2_5_vl_text": {"rope_parameters": _MROPE},
    "qwen2_vl_text": {"rope_parameters": _MROPE},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4,
                       "indexer_compress_ratio": 2, "hc_lowrank": 8},
    "reformer": {"_inputs": {"attention_mask": None}, "is_decoder": True, "attn_layers": ["local", "lsh"],
                 "attention_head_size": 8, "num_buckets": 2,
                 "axial_pos_shape": [4, 2], "axial_pos_embds_dim": [16, 16], "feed_forward_size": 48, "hash_seed": 0,
                 "local_attn_chunk_length": 2, "lsh_attn_chunk_length": 2, "max_position_embeddings": 8},
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64, "pronunciation_embed_dim": 16,
                 "shape_embed_dim": 16},
    "solar_open": {"_seed": 3},  # so that all experts are used
    "squeezebert": {"embedding_size": 32},
    "udop": {"_inputs": {"bbox": torch.arange(48).reshape(2, 6, 4) / 50.0}},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
