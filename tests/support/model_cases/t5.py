"""T5, its version 1.1, and FLAN-T5."""

from translation import inputs, translated, valid

from .case import Case

SETTINGS = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 41,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 5,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}

CASES = {
    "padded": Case(SETTINGS, inputs(41, padded=True), call=translated, valid=valid()),
    "gated, untied": Case(
        SETTINGS | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1},
        inputs(41, padded=False),
        call=translated,
    ),
    "without a head": Case(
        SETTINGS | {"architectures": ["T5Model"]},
        inputs(41, padded=True, labels=False),
        call=translated,
        valid=valid(),
    ),
}
