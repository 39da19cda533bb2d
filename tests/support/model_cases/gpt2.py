"""GPT-2."""

from .case import Case, hidden, padded, whole

SETTINGS = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 41,
    "n_positions": 12,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
}
PADDED = padded(41)
INPUTS = {name: PADDED[name] for name in ("input_ids", "attention_mask", "position_ids")}

CASES = {
    "whole": Case(SETTINGS, whole(41), generates=True),
    "padded": Case(SETTINGS, PADDED, valid={"logits": PADDED["attention_mask"]}, generates=True),
    "untied, scaled by depth": Case(
        SETTINGS
        | {
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
            "n_inner": 24,
            "activation_function": "relu",
        },
        whole(41),
    ),
    "without a head": Case(
        SETTINGS | {"architectures": ["GPT2Model"]},
        INPUTS,
        call=hidden,
        valid={"last_hidden_state": PADDED["attention_mask"]},
    ),
}
