"""The Transformer, as Marian's checkpoints have it; Hugging Face counts padding on the left in positions."""

from translation import RIGHT, inputs, translated, valid

from .case import Case

SETTINGS = {
    "model_type": "marian",
    "architectures": ["MarianMTModel"],
    "vocab_size": 41,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "activation_function": "swish",
    "scale_embedding": True,
    "max_position_embeddings": 9,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}
COMPUTED = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")

CASES = {
    "padded": Case(
        SETTINGS,
        inputs(41, padded=True, sources=RIGHT),
        call=translated,
        valid=valid(RIGHT),
        unused=("final_logits_bias",),
        computed=tuple(f"model.{name}" for name in COMPUTED),
        buffers=("final_logits_bias",),
    ),
    "without a head": Case(
        SETTINGS | {"architectures": ["MarianModel"], "scale_embedding": False},
        inputs(41, padded=False, labels=False),
        call=translated,
        computed=COMPUTED,
    ),
}
