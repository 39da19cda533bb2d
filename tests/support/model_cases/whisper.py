"""Whisper."""

import numpy as np
from translation import inputs, translated, valid

from .case import Case

SETTINGS = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": 41,
    "num_mel_bins": 5,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_source_positions": 6,
    "max_target_positions": 9,
    "decoder_start_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "begin_suppress_tokens": None,
}
FIXED = "encoder.embed_positions.weight"


def heard(*, padded: bool, labels: bool = True) -> dict[str, np.ndarray]:
    """Features of sound instead of tokens; only the decoder's tokens are padded, as Whisper masks no sound."""
    found = inputs(41, padded=padded, labels=labels)
    left = {name: one for name, one in found.items() if name not in ("input_ids", "attention_mask")}
    sounds = np.random.default_rng(5).standard_normal((3, 5, 12)).astype(np.float32)
    return {"input_features": sounds, **left}


VALID = {name: one for name, one in valid().items() if not name.startswith("encoder")}

CASES = {
    "padded": Case(SETTINGS, heard(padded=True), call=translated, valid=VALID, unused=(f"model.{FIXED}",)),
    "without a head": Case(
        SETTINGS | {"architectures": ["WhisperModel"]},
        heard(padded=False, labels=False),
        call=translated,
        unused=(FIXED,),
    ),
}
