"""What encoder-decoders are called with, and what is compared."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jattn import models

SOURCES = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
RIGHT = np.sort(SOURCES)[:, ::-1].copy()  # padded on the right alone
TARGETS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def tokens(vocabulary: int, *shape: int, seed: int) -> np.ndarray:
    """Random tokens, none that pads."""
    return np.random.default_rng(seed).integers(3, vocabulary, shape)


def inputs(
    vocabulary: int, *, padded: bool, labels: bool = True, sources: np.ndarray = SOURCES
) -> dict[str, np.ndarray]:
    """Token ids of both sides; with padding of the encoder's as in `sources`, and of the decoder's on the right."""
    found = {
        "input_ids": tokens(vocabulary, *SOURCES.shape, seed=2),
        "decoder_input_ids": tokens(vocabulary, *TARGETS.shape, seed=3),
    }
    counted = TARGETS if padded else np.ones_like(TARGETS)
    if padded:
        found |= {"attention_mask": sources, "decoder_attention_mask": TARGETS}
    if labels:
        found["labels"] = np.where(counted, tokens(vocabulary, *TARGETS.shape, seed=4), -100)
    return found


def source(inputs: Mapping[str, Any]) -> Any:
    """What the encoder takes."""
    return inputs["input_ids"] if "input_ids" in inputs else inputs["input_features"]


def translated(model: Any, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What the encoder gives; logits and the loss of `labels`, or hidden states where there are none."""
    masks = {name: inputs[name] for name in ("attention_mask", "decoder_attention_mask") if name in inputs}
    encoded = model.encode(source(inputs), attention_mask=masks.get("attention_mask"))
    output = model.decode(inputs["decoder_input_ids"], encoded, **masks)
    found = {"encoder_last_hidden_state": encoded}
    if "labels" not in inputs:
        return found | {"last_hidden_state": output}
    return found | {"logits": output, "loss": models.token_loss(output, inputs["labels"])}


def valid(sources: np.ndarray = SOURCES) -> dict[str, np.ndarray]:
    """Where outputs of padded inputs have a meaning."""
    return {"encoder_last_hidden_state": sources, "logits": TARGETS, "last_hidden_state": TARGETS}
