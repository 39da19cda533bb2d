"""ViT."""

from typing import Any

import numpy as np

from .case import Case, label_loss

SETTINGS = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": [6, 8],
    "patch_size": [3, 2],
}
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 6, 8)).astype(np.float32)
STORED = (
    (r"\blayers\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def encode(model: Any, inputs: Any) -> dict[str, Any]:
    found = model(np.moveaxis(inputs["pixel_values"], 1, -1))
    return {"last_hidden_state": found.hidden, "pooler_output": found.pooled}


def classify(model: Any, inputs: Any) -> dict[str, Any]:
    logits = model(np.moveaxis(inputs["pixel_values"], 1, -1))
    return {"logits": logits, "loss": label_loss(logits, inputs["labels"])}


CASES = {
    "hidden and pooled": Case(
        SETTINGS | {"architectures": ["ViTModel"]}, {"pixel_values": IMAGES}, call=encode, stored=STORED
    ),
    "classifier, no bias": Case(
        SETTINGS
        | {
            "architectures": ["ViTForImageClassification"],
            "image_size": 6,
            "patch_size": 3,
            "qkv_bias": False,
            "id2label": {0: "one", 1: "two", 2: "three"},
            "hidden_act": "gelu_new",
        },
        {"pixel_values": IMAGES[..., :6], "labels": np.array([2, 0])},
        call=classify,
        stored=STORED,
    ),
}
