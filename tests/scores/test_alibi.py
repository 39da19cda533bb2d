"""ALiBi."""

import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows

import jattn
from jattn.foundation.pieces import align
from jattn.scores import ALiBi


def test_the_score_falls_with_distance():
    s, slopes = normal(0, (2, 4, 3, 5), (4,))
    here, there = np.arange(3)[:, None] + 7, np.arange(5)
    distance = np.abs(here - there)

    def ours(s, slopes):
        aligned = align(ALiBi(slopes), (2,), {"head": 4, "query": 3, "key": 5})
        return aligned.modify(s, jnp.asarray(here), jnp.asarray(there))

    check(ours, lambda s, slopes: s - slopes[:, None, None] * distance, s, slopes)


@pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))
def test_slopes_have_gradients_through_attention(implementation):
    q, k, v, slopes = normal(1, (6, 4, 3), (6, 2, 3), (6, 2, 3), (4,))

    def truth(q, k, v, slopes):
        k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
        distance = np.abs(np.arange(6)[:, None] - np.arange(6))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(3) - slopes[:, None, None] * distance
        weights = np.exp(scores) * (np.arange(6)[:, None] >= np.arange(6))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)

    def ours(q, k, v, slopes):
        return jattn.attention(q, k, v, scores=ALiBi(slopes), mask=jattn.masks.Causal(), implementation=implementation)

    check(ours, truth, q, k, v, slopes)


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [0.5 * i for i in range(1, 17)]),
        (3, [4, 8, 2]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_the_slopes_of_the_paper(heads, exponents):
    close(ALiBi.standard(heads).slopes, 2.0 ** -np.array(exponents, float), 1e-7)


@pytest.mark.parametrize("heads", [0, -1, 2.0, True, "8"])
def test_heads_must_be_a_positive_integer(heads):
    with pytest.raises(ValueError, match="`heads` must be a positive integer"):
        ALiBi.standard(heads)


@pytest.mark.parametrize("slopes", [0.5, np.ones(4, int), np.float32(1), None])
def test_slopes_need_their_axis(slopes):
    with pytest.raises(ValueError, match="`slopes` must be a floating-point array"):
        ALiBi(slopes)
