"""Losses: cross-entropy of the next token or of given labels, label smoothing; the inputs of a decoder."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..foundation.arguments import check_rate
from ..foundation.arrays import as_array, describe, dtype_of
from ..foundation.numerics import widen
from .layers import checked_tokens

IGNORED = -100
"""The label of tokens that do not count, as PyTorch and Hugging Face have it."""


def next_token_loss(logits: jax.Array, tokens: Any, attention_mask: Any = None) -> jax.Array:
    """The mean of -log p(token | tokens before it) over all tokens but the first of each sequence; 0 if none counts.

    Args:
        logits: `[..., length, vocabulary]`.
        tokens: integers `[..., length]`, the inputs of the model.
        attention_mask: ones and zeros `[..., length]`; padding is not counted.

    Raises:
        ValueError: shapes do not match; there are fewer than two tokens; a token is known to be out of the vocabulary.

    >>> print(next_token_loss(jnp.zeros((2, 3, 4)), [[1, 2, 3], [3, 2, 1]]).round(3))
    1.386
    """
    tokens = _labels_of(logits, tokens, "tokens")
    if tokens.shape[-1] < 2:
        raise ValueError(f"`tokens` must be at least two, of which one predicts the next; got shape {tokens.shape}.")
    labels = checked_tokens("tokens", tokens, logits.shape[-1])[..., 1:]
    if attention_mask is not None:
        counted = as_array(attention_mask)
        if dtype_of(counted) is None or tuple(counted.shape) != tuple(tokens.shape):
            raise ValueError(
                f"`attention_mask` must be ones and zeros of the shape {tuple(tokens.shape)} of `tokens`; got "
                f"{describe(attention_mask)}."
            )
        labels = jnp.where((counted[..., 1:] != 0) & (counted[..., :-1] != 0), labels, IGNORED)
    return token_loss(logits[..., :-1, :], labels)


def shifted_right(labels: Any, start: int, pad: int = 0) -> jax.Array:
    """The inputs of a decoder that is to predict labels: `start`, and the labels but the last.

    Args:
        labels: integers `[..., length]`; -100 is replaced by `pad`.
        start: the token that begins every sequence.
        pad: the token that pads.

    Raises:
        ValueError: labels are not integers, or tokens are not integers of their dtype.

    >>> shifted_right([[5, 6, 7], [8, -100, -100]], start=1).tolist()
    [[1, 5, 6], [1, 8, 0]]
    """
    labels = _integers("labels", labels)
    limits = np.iinfo(labels.dtype)
    for name, token in {"start": start, "pad": pad}.items():
        if not _is_int(token) or not limits.min <= token <= limits.max:
            raise ValueError(f"`{name}` must be a token, an int that {labels.dtype} holds; got {describe(token)}.")
    first = jnp.full_like(labels[..., :1], start)
    return jnp.concatenate([first, jnp.where(labels[..., :-1] == IGNORED, pad, labels[..., :-1])], -1)


def token_loss(logits: jax.Array, labels: Any, *, ignored: int = IGNORED) -> jax.Array:
    """The mean of -log p(label) over all labels that count; 0 if none does.

    Args:
        logits: `[..., length, vocabulary]`.
        labels: integers `[..., length]`.
        ignored: the label that does not count.

    Raises:
        ValueError: as in `smoothed_loss`.

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
        ValueError: `smoothing` is not in [0, 1], or not known while tracing; labels are not integers, have another
            shape than the logits, or are known to be out of the vocabulary; `padding` is out of it.

    >>> import jax.numpy as jnp
    >>> print(smoothed_loss(jnp.log(jnp.array([[0.05, 0.9, 0.05]])), [1]).round(3))
    0.0
    """
    check_rate("smoothing", smoothing)
    if isinstance(smoothing, Tracer):
        raise ValueError("`smoothing` must be a number that is known while tracing; got a traced one.")
    smoothing = float(smoothing)
    labels = _labels_of(logits, labels, "labels")
    vocabulary = logits.shape[-1]
    for name, token in {"padding": padding, "ignored": ignored}.items():
        if not (_is_int(token) or (token is None and name == "padding")):
            raise ValueError(f"`{name}` must be a label, an int; got {describe(token)}.")
    if padding is not None and not 0 <= padding < vocabulary:
        raise ValueError(f"`padding` must be in [0, {vocabulary}), the vocabulary of `logits`; got {padding}.")
    counted = labels != ignored if padding is None else (labels != ignored) & (labels != padding)
    labels = checked_tokens("labels", jnp.where(labels == ignored, 0, labels), vocabulary)
    log_p = jax.nn.log_softmax(jnp.where(counted[..., None], widen(logits), 0))  # NaN must not reach a gradient
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


def _labels_of(logits: Any, labels: Any, name: str) -> jax.Array:
    """Labels, one for each row of logits.

    Raises:
        ValueError: they are no integers, or of another shape.
    """
    if dtype_of(logits) is None or len(logits.shape) < 2:
        raise ValueError(f"`logits` must be an array [..., length, vocabulary]; got {describe(logits)}.")
    labels = _integers(name, labels)
    if labels.shape != tuple(logits.shape[:-1]):
        raise ValueError(
            f"`{name}` must have the shape {tuple(logits.shape[:-1])} of `logits` {tuple(logits.shape)} without its "
            f"last axis; got {labels.shape}."
        )
    return labels


def _integers(name: str, labels: Any) -> jax.Array:
    """An integer array `[..., length]`.

    Raises:
        ValueError: it is none.
    """
    array = as_array(labels)
    dtype = dtype_of(array)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or not array.ndim:
        raise ValueError(f"`{name}` must be integers [..., length]; got {describe(labels)}.")
    return jnp.asarray(array)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
