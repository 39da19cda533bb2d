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


def test_labels_are_checked():
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 7\)"):
        models.token_loss(LOGITS, LABELS + 1)
    with pytest.raises(ValueError, match="`logits` must be of other tokens too"):
        models.smoothed_loss(LOGITS[..., :1], LABELS * 0, 0.1)
    with pytest.raises(ValueError, match="`smoothing`"):
        models.smoothed_loss(LOGITS, LABELS, 1.5)
