"""Losses of models that are trained on labels of their own: cross-entropy, label smoothing; the decoder's inputs."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arguments import check_rate
from ..foundation.numerics import widen
from .layers import checked_tokens

IGNORED = -100
"""The label of tokens that do not count, as PyTorch and Hugging Face have it."""


def shifted_right(labels: Any, start: int, pad: int = 0) -> jax.Array:
    """The inputs of a decoder that is to predict labels: `start`, and the labels but the last.

    Args:
        labels: integers `[..., length]`; -100 is replaced by `pad`.
        start: the token that begins every sequence.
        pad: the token that pads.

    >>> shifted_right([[5, 6, 7], [8, -100, -100]], start=1).tolist()
    [[1, 5, 6], [1, 8, 0]]
    """
    labels = jnp.asarray(labels)
    first = jnp.full_like(labels[..., :1], start)
    return jnp.concatenate([first, jnp.where(labels[..., :-1] == IGNORED, pad, labels[..., :-1])], -1)


def token_loss(logits: jax.Array, labels: Any, *, ignored: int = IGNORED) -> jax.Array:
    """The mean of -log p(label) over all labels that count; 0 if none does.

    Args:
        logits: `[..., length, vocabulary]`.
        labels: integers `[..., length]`.
        ignored: the label that does not count.

    >>> import jax.numpy as jnp
    >>> print(token_loss(jnp.zeros((1, 3, 4)), [[0, 3, -100]]).round(3))
    1.386
    """
    return smoothed_loss(logits, labels, 0.0, ignored=ignored)


def smoothed_loss(
    logits: jax.Array, labels: Any, smoothing: float = 0.1, *, padding: int | None = None, ignored: int = IGNORED
) -> jax.Array:
    """The mean of KL(q || p) over all labels that count, where q has 1 - ε at the label and ε shared by other tokens.

        q(label) = 1 - ε,    q(token) = ε / n for each of the n other tokens, of which padding is none

    Label smoothing of Szegedy et al. 2016 (arXiv:1512.00567) as the Annotated Transformer has it: the token that pads
    gets nothing, and the entropy of q is subtracted, so that the loss can reach 0. Without smoothing it is
    cross-entropy.

    Args:
        logits: `[..., length, vocabulary]`.
        labels: integers `[..., length]`.
        smoothing: ε.
        padding: the token that pads, which does not count as a label either.
        ignored: another label that does not count.

    Raises:
        ValueError: `smoothing` is not in [0, 1]; labels are not integers, or out of the vocabulary.

    >>> import jax.numpy as jnp
    >>> print(smoothed_loss(jnp.log(jnp.array([[0.05, 0.9, 0.05]])), [1]).round(3))
    0.0
    """
    check_rate("smoothing", smoothing)
    vocabulary = logits.shape[-1]
    labels = jnp.asarray(labels)
    counted = labels != ignored if padding is None else (labels != ignored) & (labels != padding)
    labels = checked_tokens("labels", jnp.where(labels == ignored, 0, labels), vocabulary)
    log_p = jax.nn.log_softmax(widen(logits))
    at_label = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    losses = -at_label
    if smoothing:
        others = log_p.sum(-1) - at_label
        count = vocabulary - 1
        if padding is not None:
            others, count = others - log_p[..., padding], vocabulary - 2
        if count < 1:
            raise ValueError(f"`logits` must be of other tokens too to share `smoothing`; got shape {logits.shape}.")
        share = smoothing / count
        entropy = -smoothing * math.log(share) - ((1 - smoothing) * math.log(1 - smoothing) if smoothing < 1 else 0)
        losses = -(1 - smoothing) * at_label - share * others - entropy
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)
