"""BigBird, in evaluation, where Hugging Face draws no random blocks."""

from typing import Any

import numpy as np

from .bert import encoded, logits
from .case import Case, label_loss, tokens

SETTINGS = {
    "model_type": "big_bird",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 24,
    "block_size": 2,
    "num_random_blocks": 1,
}
MASK = np.array([[1] * 19, [1] * 12 + [0] * 7])  # 10 blocks, the last one shorter
INPUTS = {"input_ids": tokens(29, *MASK.shape), "attention_mask": MASK}
SHORT = {name: one[:, :14] for name, one in INPUTS.items()}  # 7 blocks, of 5 + 2 that would have to be more
LABELS = np.where(MASK == 1, tokens(29, *MASK.shape, seed=2), -100)


def predicted(model: Any, inputs: Any) -> dict[str, Any]:
    found = model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return {"logits": found, "loss": label_loss(found, inputs["labels"])}


CASES = {
    "block sparse": Case(
        SETTINGS | {"architectures": ["BigBirdModel"]},
        {**INPUTS, "token_type_ids": INPUTS["input_ids"] % 2},
        call=encoded,
        valid={"last_hidden_state": MASK},
    ),
    "masked, two random blocks, no bias": Case(
        SETTINGS
        | {
            "architectures": ["BigBirdForMaskedLM"],
            "num_random_blocks": 2,
            "use_bias": False,
            "rescale_embeddings": True,
            "block_size": 1,
        },
        {**INPUTS, "labels": LABELS},
        call=predicted,
        valid={"logits": MASK},
    ),
    "too short to be sparse": Case(
        SETTINGS | {"architectures": ["BigBirdModel"]},
        SHORT,
        call=encoded,
        valid={"last_hidden_state": SHORT["attention_mask"]},
    ),
    "full, classes": Case(
        SETTINGS | {"architectures": ["BigBirdForSequenceClassification"], "attention_type": "original_full"},
        INPUTS,
        call=logits,
    ),
}
