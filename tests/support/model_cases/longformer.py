"""Longformer."""

from typing import Any

import numpy as np

from .bert import logits
from .case import Case, label_loss, tokens

SETTINGS = {
    "model_type": "longformer",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 20,
    "attention_window": [4, 8],
}
ROWS = ("1111111111111", "1111111110000", "1111100000000")
MASK = np.array([[int(one) for one in row] for row in ROWS])
TOKENS = np.where(MASK == 1, tokens(29, *MASK.shape), 1)  # Hugging Face's positions count tokens that are not padding
GLOBAL = np.zeros_like(MASK)
GLOBAL[0, [0, 6]] = GLOBAL[1, 3] = 1
INPUTS = {"input_ids": TOKENS, "attention_mask": MASK}
LABELS = np.where(MASK == 1, tokens(29, *MASK.shape, seed=2), -100)


def encoded(model: Any, inputs: Any) -> dict[str, Any]:
    marks = {name: inputs.get(name) for name in ("attention_mask", "global_attention_mask")}
    found = model(inputs["input_ids"], **marks, token_types=inputs.get("token_type_ids"))
    return {"last_hidden_state": found.hidden, "pooler_output": found.pooled}


def predicted(model: Any, inputs: Any) -> dict[str, Any]:
    found = model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return {"logits": found, "loss": label_loss(found, inputs["labels"])}


CASES = {
    "global tokens": Case(
        SETTINGS | {"architectures": ["LongformerModel"]},
        {**INPUTS, "global_attention_mask": GLOBAL, "token_type_ids": TOKENS % 2},
        call=encoded,
        valid={"last_hidden_state": MASK},
    ),
    "masked, window only": Case(
        SETTINGS | {"architectures": ["LongformerForMaskedLM"], "attention_window": 4},
        {**INPUTS, "labels": LABELS},
        call=predicted,
        valid={"logits": MASK},
    ),
    "classes": Case(SETTINGS | {"architectures": ["LongformerForSequenceClassification"]}, INPUTS, call=logits),
}
