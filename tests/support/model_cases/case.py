"""A tiny model with random weights, its inputs, and what to compare with Hugging Face's."""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn import models


def next_tokens(model: Any, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Logits of a language model, and the loss that Hugging Face computes of `labels`."""
    logits = model(inputs["input_ids"], attention_mask=inputs.get("attention_mask"))
    return {"logits": logits, "loss": models.next_token_loss(logits, inputs["input_ids"], inputs.get("attention_mask"))}


def hidden(model: Any, inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Hidden states of a model without a head."""
    return {"last_hidden_state": model(inputs["input_ids"], attention_mask=inputs.get("attention_mask"))}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Args:
        settings: its `config.json`, with `model_type` and `architectures`.
        inputs: what Hugging Face's model is called with, by name.
        call: what the model here returns for these inputs, by the names of Hugging Face's outputs.
        valid: for each output, ones where it has a meaning, such as `attention_mask`; broadcast to the leading axes.
        generates: whether `prefill` and `step` give the logits of the whole.
        unused: parameters of Hugging Face's model without a gradient here, for heads that are not computed.
        stored: regular expressions and what replaces them: from the names of Hugging Face's parameters to those of the
            tensors of its checkpoints, where these differ.
        computed: parameters of Hugging Face's model that it computes and no checkpoint holds.
        buffers: tensors of checkpoints that are no parameters of Hugging Face's model.
    """

    settings: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    call: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = next_tokens
    valid: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    generates: bool = False
    unused: tuple[str, ...] = ()
    stored: tuple[tuple[str, str], ...] = ()
    computed: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()

    def tensor(self, parameter: str) -> str:
        """The name of a parameter of Hugging Face's model in a checkpoint."""
        for pattern, replacement in self.stored:
            parameter = re.sub(pattern, replacement, parameter)
        return parameter

    def marked(self, name: str, output: Any) -> Any:
        """An output with zeros where it has no meaning."""
        if name not in self.valid:
            return output
        valid = self.valid[name]
        return jnp.where(valid[(..., *[None] * (output.ndim - valid.ndim))] != 0, output, 0)


def objective(outputs: Mapping[str, Any], cotangents: Mapping[str, Any]) -> Any:
    """The number whose gradients are compared: the loss if there is one, else every output times fixed numbers."""
    if "loss" in outputs:
        return outputs["loss"]
    return sum((outputs[name] * cotangents[name]).sum() for name in outputs)


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that depend on the name alone: about as large as trained weights of this kind."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    numbers = np.asarray(numbers, np.float32)
    if len(shape) < 2:
        return np.asarray(1 + 0.2 * numbers if name.endswith("weight") and shape else 0.2 * numbers, np.float32)
    return numbers * np.float32(0.7 / np.sqrt(shape[-1]) if "embed" not in name else 0.5)


def tokens(vocabulary: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random tokens, without the first few: PyTorch gives an embedding's row for padding no gradient."""
    return np.random.default_rng(seed).integers(3, vocabulary, shape)


def whole(vocabulary: int, batch: int = 2, length: int = 7) -> dict[str, np.ndarray]:
    """Inputs without padding, with labels."""
    ids = tokens(vocabulary, batch, length)
    return {"input_ids": ids, "labels": ids}


def padded(vocabulary: int, rows: tuple[str, ...] = ("0011111", "1111100", "1111111"), *, labels: bool = True) -> dict:
    """Inputs padded on both sides, one row of ones and zeros each; no label counts that padding would predict."""
    mask = np.array([[int(one) for one in row] for row in rows])
    ids = tokens(vocabulary, *mask.shape, seed=1)
    before = np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {**found, "labels": np.where(mask & before, ids, -100)} if labels else found


def label_loss(logits: Any, labels: Any) -> jax.Array:
    """The mean of -log p(label), as classifiers of Hugging Face compute it; a label of -100 is not counted."""
    counted = labels != -100
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    return jnp.where(counted, losses, 0).sum() / counted.sum()
