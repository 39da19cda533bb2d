"""Losses against their definition in NumPy, in float64."""

import jax
import numpy as np
import pytest

from jattn import models

LOGITS = np.random.default_rng(0).standard_normal((2, 4, 7)).astype(np.float32)
LABELS = np.array([[1, 2, -100, 6], [3, 0, 5, 0]])


def divergence(smoothing, padding):
    """The mean KL(q || p) with q as a whole table."""
    log_p = LOGITS.astype(np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    losses = []
    for row, label in zip(log_p.reshape(-1, 7), LABELS.reshape(-1), strict=True):
        if label not in (-100, padding):
            q = np.full(7, smoothing / (6 if padding is None else 5))
            if padding is not None:
                q[padding] = 0
            q[label] = 1 - smoothing
            losses.append(sum(one * (np.log(one) - log) for one, log in zip(q, row, strict=True) if one))
    return np.mean(losses)


@pytest.mark.parametrize(("smoothing", "padding"), [(0.0, None), (0.0, 0), (0.1, None), (0.1, 0), (1.0, 0)])
def test_losses_are_mean_divergences(smoothing, padding):
    found = jax.jit(lambda logits: models.smoothed_loss(logits, LABELS, smoothing, padding=padding))(LOGITS)
    np.testing.assert_allclose(found, divergence(smoothing, padding), rtol=1e-6)


def test_no_label_that_counts_gives_zero():
    value, gradient = jax.value_and_grad(lambda logits: models.token_loss(logits, np.full((2, 4), -100)))(LOGITS)
    assert value == 0
    assert not gradient.any()


def test_the_next_token_is_a_label():
    """Padding counts neither as what is predicted nor as what predicts, and NaN in it reaches no gradient."""
    tokens, mask = np.abs(LABELS) % 7, np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    labels = np.array([[tokens[0, 1], tokens[0, 2], -100], [-100, tokens[1, 2], tokens[1, 3]]])
    padded = np.where(mask[..., None] == 0, np.nan, LOGITS)
    value, gradient = jax.value_and_grad(lambda logits: models.next_token_loss(logits, tokens, mask))(padded)
    np.testing.assert_allclose(value, models.token_loss(LOGITS[:, :-1], labels), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert models.next_token_loss(LOGITS, tokens, np.zeros((2, 4), int)) == 0


REFUSED = {
    "above": (lambda: models.token_loss(LOGITS, LABELS + 1), r"`labels` must be in \[0, 7\)"),
    "one row for two": (
        lambda: models.token_loss(LOGITS, LABELS[:1]),
        r"`labels` must have the shape \(2, 4\) of `logits`",
    ),
    "no token to predict": (
        lambda: models.next_token_loss(LOGITS[:, :1], LABELS[1:, :1]),
        "`tokens` must have the shape",
    ),
    "one token": (lambda: models.next_token_loss(LOGITS[:, :1], LABELS[:, :1]), "`tokens` must be at least two"),
    "-100 among tokens": (
        lambda: models.next_token_loss(LOGITS, LABELS),
        r"`tokens` must be in \[0, 7\).*got -100 to 6",
    ),
    "one mask for two": (
        lambda: models.next_token_loss(LOGITS, LABELS % 7, np.ones((1, 4))),
        r"`attention_mask` must be ones and zeros of the shape \(2, 4\)",
    ),
    "one class": (
        lambda: models.smoothed_loss(LOGITS[..., :1], LABELS * 0, 0.1),
        "`logits` must be of other tokens too",
    ),
    "smoothing": (lambda: models.smoothed_loss(LOGITS, LABELS, 1.5), "`smoothing` must be a probability"),
    "traced smoothing": (
        lambda: jax.jit(lambda one: models.smoothed_loss(LOGITS, LABELS, one))(0.1),
        "`smoothing` must be a number that is known",
    ),
    "padding": (lambda: models.smoothed_loss(LOGITS, LABELS, 0.1, padding=7), r"`padding` must be in \[0, 7\)"),
    "start": (lambda: models.shifted_right(LABELS, 10**12), "`start` must be a token, an int that int32 holds"),
    "floats": (lambda: models.shifted_right(LABELS * 1.0, 1), "`labels` must be integers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
