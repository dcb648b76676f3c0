"""Configurations of published models, in the keys of their own `config.json`, against their authors' round figures.

`test_families.py` holds the exact counts against modules; here the keys are those of real, also of older files.
"""

from typing import Any

import pytest

from moe_optuna.interchange import from_hf

LFM2_TYPES = ["full_attention" if layer in (2, 6, 10, 14, 18, 21) else "conv" for layer in range(24)]

# name: configuration; total and active parameters in billions; what the authors count as active: all parameters, all
# but the input embedding, or the matrices between embedding and head
PUBLISHED: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "Mixtral-8x22B-v0.1": ({
        "model_type": "mixtral", "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56,
        "num_attention_heads": 48, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "max_position_embeddings": 65536, "sliding_window": None, "rope_theta": 1000000,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }, 141, 39, "all"),
    "Qwen3-235B-A22B": ({
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 94,
        "mlp_only_layers": [], "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 94, "num_key_value_heads": 4, "sliding_window": None,
        "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    }, 235, 22, "all"),
    "Qwen2-57B-A14B": ({
        "model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "moe_intermediate_size": 2560,
        "num_attention_heads": 28, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "shared_expert_intermediate_size": 20480, "sliding_window": 131072,
        "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 151936,
    }, 57.4, 14, "all"),
    "DeepSeek-V2": ({
        "model_type": "deepseek_v2", "attention_bias": False, "first_k_dense_replace": 1, "hidden_size": 5120,
        "intermediate_size": 12288, "kv_lora_rank": 512, "max_position_embeddings": 163840,
        "moe_intermediate_size": 1536, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 160,
        "n_shared_experts": 2, "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "tie_word_embeddings": False, "vocab_size": 102400, "topk_group": 3,
    }, 236, 21, "no_embedding"),
    "Moonlight-16B-A3B": ({
        "model_type": "deepseek_v3", "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 11264,
        "kv_lora_rank": 512, "max_position_embeddings": 8192, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
        "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "num_key_value_heads": 16, "num_nextn_predict_layers": 0, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 163840,
    }, 16, 2.24, "non_embedding"),
    "Kimi-K2": ({
        "model_type": "kimi_k2", "first_k_dense_replace": 1, "hidden_size": 7168, "intermediate_size": 18432,
        "kv_lora_rank": 512, "max_position_embeddings": 131072, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_routed_experts": 384, "n_shared_experts": 1, "num_attention_heads": 64, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 64, "num_nextn_predict_layers": 0, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 163840,
    }, 1026, 32, "no_embedding"),
    "GLM-4.5": ({
        "model_type": "glm4_moe", "attention_bias": True, "first_k_dense_replace": 3, "head_dim": 128,
        "hidden_size": 5120, "intermediate_size": 12288, "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536, "n_group": 1, "n_routed_experts": 160, "n_shared_experts": 1,
        "num_attention_heads": 96, "num_experts_per_tok": 8, "num_hidden_layers": 92, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "use_qk_norm": True, "vocab_size": 151552,
    }, 355, 32, "non_embedding"),
    "GLM-4.5-Air": ({
        "model_type": "glm4_moe", "attention_bias": True, "first_k_dense_replace": 1, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 10944, "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
        "num_attention_heads": 96, "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "use_qk_norm": False, "vocab_size": 151552,
    }, 106, 12, "non_embedding"),
    "gpt-oss-120b": ({
        "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "hidden_size": 2880,
        "intermediate_size": 2880, "max_position_embeddings": 131072, "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 8, "num_local_experts": 128,
        "sliding_window": 128, "tie_word_embeddings": False, "vocab_size": 201088,
    }, 116.83, 5.13, "no_embedding"),
    "granite-3.0-3b-a800m": ({
        "model_type": "granitemoe", "attention_bias": False, "hidden_size": 1536, "intermediate_size": 512,
        "max_position_embeddings": 4096, "num_attention_heads": 24, "num_experts_per_tok": 8,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 40, "tie_word_embeddings": True,
        "vocab_size": 49155,
    }, 3.3, 0.8, "non_embedding"),
    "Phi-3.5-MoE": ({
        "model_type": "phimoe", "attention_bias": True, "hidden_size": 4096, "intermediate_size": 6400,
        "lm_head_bias": True, "max_position_embeddings": 131072, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 16, "sliding_window": 131072,
        "tie_word_embeddings": False, "vocab_size": 32064,
    }, 41.9, 6.6, "all"),
    "dots.llm1": ({
        "model_type": "dots1", "attention_bias": False, "first_k_dense_replace": 1, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 10944, "max_position_embeddings": 32768, "max_window_layers": 62,
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_routed_experts": 128, "n_shared_experts": 2,
        "num_attention_heads": 32, "num_experts_per_tok": 6, "num_hidden_layers": 62, "num_key_value_heads": 32,
        "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
    }, 142, 14, "all"),
    "Llama-4-Maverick-17B-128E": ({
        "model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 8192, "head_dim": 128,
        "hidden_size": 5120, "interleave_moe_layer_step": 2, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "max_position_embeddings": 1048576, "moe_layers": list(range(1, 48, 2)), "no_rope_layers": [],
        "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
        "num_local_experts": 128, "tie_word_embeddings": False, "use_qk_norm": False, "vocab_size": 202048,
    }, 400, 17, "all"),
    "ERNIE-4.5-21B-A3B": ({
        "model_type": "ernie4_5_moe", "hidden_size": 2560, "intermediate_size": 12288,
        "max_position_embeddings": 131072, "moe_capacity": [64, 64, 64], "moe_intermediate_size": 1536, "moe_k": 6,
        "moe_layer_end_index": 27, "moe_layer_interval": 1, "moe_layer_start_index": 1, "moe_num_experts": 64,
        "moe_num_shared_experts": 2, "num_attention_heads": 20, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "tie_word_embeddings": True, "use_bias": False, "vocab_size": 103424,
    }, 21.8, 3, "non_embedding"),
    "LFM2-8B-A1B": ({
        "model_type": "lfm2_moe", "conv_L_cache": 3, "conv_bias": False, "hidden_size": 2048,
        "intermediate_size": 7168, "layer_types": LFM2_TYPES, "max_position_embeddings": 128000,
        "moe_intermediate_size": 1792, "norm_eps": 1e-5, "num_attention_heads": 32, "num_dense_layers": 2,
        "num_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "tie_embedding": True, "use_expert_bias": True, "vocab_size": 65536,
    }, 8.3, 1.5, "all"),
    "DBRX": ({
        "model_type": "dbrx", "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "model_type": "", "rope_theta": 500000},
        "d_model": 6144, "ffn_config": {
            "ffn_hidden_size": 10752, "model_type": "", "moe_jitter_eps": 0.01, "moe_num_experts": 16, "moe_top_k": 4,
        },
        "max_seq_len": 32768, "n_heads": 48, "n_layers": 40, "tie_word_embeddings": False, "vocab_size": 100352,
    }, 132, 36, "all"),
    "JetMoE-8B": ({
        "model_type": "jetmoe", "activation_function": "silu", "hidden_size": 2048, "intermediate_size": 5632,
        "kv_channels": 128, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 24, "num_key_value_heads": 16, "num_local_experts": 8, "tie_word_embeddings": True,
        "vocab_size": 32000,
    }, 8.52, 2.2, "no_embedding"),
    "Ling-lite-1.5": ({
        "model_type": "bailing_moe", "first_k_dense_replace": 0, "hidden_size": 2048, "intermediate_size": 1408,
        "max_position_embeddings": 32768, "moe_intermediate_size": 1408, "num_experts": 64, "num_shared_experts": 2,
        "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rope_scaling": None, "tie_word_embeddings": False, "use_bias": False, "use_qkv_bias": False,
        "vocab_size": 126464, "norm_head": False,
    }, 16.8, 2.75, "all"),
    "Ling-mini-2.0": ({
        "model_type": "bailing_moe", "first_k_dense_replace": 1, "head_dim": 128, "hidden_size": 2048,
        "intermediate_size": 5120, "max_position_embeddings": 32768, "moe_intermediate_size": 512,
        "moe_shared_expert_intermediate_size": 512, "num_attention_heads": 16, "num_experts": 256,
        "num_experts_per_tok": 8, "num_hidden_layers": 20, "num_key_value_heads": 4, "num_nextn_predict_layers": 0,
        "num_shared_experts": 1, "tie_word_embeddings": False, "use_bias": False, "use_qk_norm": True,
        "use_qkv_bias": False, "vocab_size": 157184,
    }, 16.26, 1.4, "all"),
    "DeepSeek-V3.2": ({
        "model_type": "deepseek_v32", "attention_bias": False, "first_k_dense_replace": 3, "hidden_size": 7168,
        "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048, "intermediate_size": 18432,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "tie_word_embeddings": False,
        "v_head_dim": 128, "vocab_size": 129280,
    }, 671, 37, "all"),
    "GLM-5": ({
        "model_type": "glm_moe_dsa", "attention_bias": False, "first_k_dense_replace": 3, "head_dim": 64,
        "hidden_size": 6144, "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048,
        "intermediate_size": 12288, "kv_lora_rank": 512, "max_position_embeddings": 202752,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 64,
        "num_experts_per_tok": 8, "num_hidden_layers": 78, "num_key_value_heads": 64, "num_nextn_predict_layers": 1,
        "q_lora_rank": 2048, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "tie_word_embeddings": False,
        "v_head_dim": 256, "vocab_size": 154880,
    }, 744, 40, "non_embedding"),
    "Qwen3.5-35B-A3B": ({
        "model_type": "qwen3_5_moe_text", "full_attention_interval": 4, "head_dim": 256, "hidden_size": 2048,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_value_head_dim": 128, "max_position_embeddings": 262144,
        "moe_intermediate_size": 512, "num_attention_heads": 16, "num_experts": 256, "num_experts_per_tok": 8,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False, "vocab_size": 248320,
    }, 35, 3, "no_embedding"),
    "Qwen3-Next-80B-A3B": ({
        "model_type": "qwen3_next", "decoder_sparse_step": 1, "full_attention_interval": 4, "head_dim": 256,
        "hidden_size": 2048, "intermediate_size": 5120, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "max_position_embeddings": 262144, "mlp_only_layers": [], "moe_intermediate_size": 512,
        "num_attention_heads": 16, "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48,
        "num_key_value_heads": 2, "shared_expert_intermediate_size": 512, "tie_word_embeddings": False,
        "vocab_size": 151936,
    }, 80, 3.9, "all"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name: str) -> None:
    config, total, active, convention = PUBLISHED[name]
    architecture = from_hf(config)
    counts = {
        "all": architecture.full.active_params,
        "no_embedding": architecture.full.active_params - architecture.vocab_size * architecture.d_model,
        "non_embedding": architecture.non_embedding.active_params,
    }
    assert architecture.full.total_params / 1e9 == pytest.approx(total, rel=0.01)
    assert counts[convention] / 1e9 == pytest.approx(active, rel=0.04)
