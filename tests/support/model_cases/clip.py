"""CLIP."""

from typing import Any

import numpy as np

from .case import Case

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = SIZES | {"model_type": "clip_text_model", "vocab_size": 23, "max_position_embeddings": 9, "projection_dim": 6}
VISION = SIZES | {"model_type": "clip_vision_model", "image_size": 6, "patch_size": 3, "projection_dim": 6}
END = {"bos_token_id": 21, "eos_token_id": 22, "pad_token_id": 1}
TOKENS = np.array([[21, 5, 9, 22, 7, 1, 1], [21, 8, 3, 4, 17, 11, 22], [21, 22, 20, 1, 1, 1, 1]])  # more after the end
MASK = (TOKENS != 1).astype(int)
IMAGES = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
VALID = {"last_hidden_state": MASK}


def compare(model: Any, inputs: Any) -> dict[str, Any]:
    images = np.moveaxis(inputs["pixel_values"], 1, -1)
    found = model(inputs["input_ids"], images, attention_mask=inputs["attention_mask"])
    return {
        "logits_per_image": found.logits,
        "image_embeds": found.images,
        "text_embeds": found.texts,
        "loss": model.loss(found),
    }


def read(pooled: str) -> Any:
    def call(model: Any, inputs: Any) -> dict[str, Any]:
        found = model(inputs["input_ids"], attention_mask=inputs.get("attention_mask"))
        return {"last_hidden_state": found.hidden, pooled: found.pooled}

    return call


def see(pooled: str) -> Any:
    def call(model: Any, inputs: Any) -> dict[str, Any]:
        found = model(np.moveaxis(inputs["pixel_values"], 1, -1))
        return {"last_hidden_state": found.hidden, pooled: found.pooled}

    return call


CASES = {
    "texts and images": Case(
        {
            "model_type": "clip",
            "architectures": ["CLIPModel"],
            "text_config": TEXT | END,
            "vision_config": VISION,
            "projection_dim": 6,
        },
        {"input_ids": TOKENS, "attention_mask": MASK, "pixel_values": IMAGES, "return_loss": np.array(True)},
        call=compare,
    ),
    "text, ended by token 2": Case(
        TEXT | {"architectures": ["CLIPTextModel"], "eos_token_id": 2, "hidden_act": "gelu"},
        {"input_ids": TOKENS[:, :5]},
        call=read("pooler_output"),
    ),
    "projected text": Case(
        TEXT | END | {"architectures": ["CLIPTextModelWithProjection"]},
        {"input_ids": TOKENS, "attention_mask": MASK},
        call=read("text_embeds"),
        valid=VALID,
    ),
    "image": Case(
        VISION | {"architectures": ["CLIPVisionModel"], "patch_size": 2},
        {"pixel_values": IMAGES},
        call=see("pooler_output"),
    ),
    "projected image": Case(
        VISION | {"architectures": ["CLIPVisionModelWithProjection"]},
        {"pixel_values": IMAGES},
        call=see("image_embeds"),
    ),
}
