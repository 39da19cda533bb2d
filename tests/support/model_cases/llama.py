"""The Llama family, one case for each choice."""

from .case import Case, hidden, padded, whole

SETTINGS = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
PADDED = padded(41)
VALID = {"logits": PADDED["attention_mask"]}
INPUTS = {name: PADDED[name] for name in ("input_ids", "attention_mask", "position_ids")}


def settings(model_type, name, **others):
    return {"model_type": model_type, "architectures": [name], **SETTINGS, **others}


CASES = {
    "llama, scaled": Case(
        settings("llama", "LlamaForCausalLM", rope_parameters=SCALED), PADDED, valid=VALID, generates=True
    ),
    "llama, tied, biases": Case(
        settings(
            "llama",
            "LlamaForCausalLM",
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
        ),
        whole(41),
    ),
    "llama, without a head": Case(
        settings("llama", "LlamaModel"), INPUTS, call=hidden, valid={"last_hidden_state": PADDED["attention_mask"]}
    ),
    "mistral": Case(settings("mistral", "MistralForCausalLM", sliding_window=3), PADDED, valid=VALID, generates=True),
    "qwen2, windows above": Case(
        settings("qwen2", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=3, max_window_layers=1), whole(41)
    ),
    "qwen3": Case(settings("qwen3", "Qwen3ForCausalLM"), PADDED, valid=VALID, generates=True),
    "gemma": Case(settings("gemma", "GemmaForCausalLM"), whole(41)),
    "gemma2": Case(
        settings(
            "gemma2",
            "Gemma2ForCausalLM",
            sliding_window=3,
            query_pre_attn_scalar=4,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
        ),
        PADDED,
        valid=VALID,
        generates=True,
    ),
    "gemma3": Case(
        settings(
            "gemma3_text",
            "Gemma3ForCausalLM",
            sliding_window=3,
            query_pre_attn_scalar=4,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
            },
        ),
        PADDED,
        valid=VALID,
        generates=True,
    ),
    "gpt-oss": Case(
        settings(
            "gpt_oss",
            "GptOssForCausalLM",
            sliding_window=3,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 150.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 8,
            },
        ),
        PADDED,
        valid=VALID,
        generates=True,
    ),
}
