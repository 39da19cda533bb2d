"""Hard attention samples from the softmax; its estimators have the documented gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from tiers import rows

import jattn
from jattn import masks
from jattn.variants.selection import best_keys, hard, reinforce

WITHOUT_1 = masks.of(lambda q, k: k != 1)


@pytest.mark.exhaustive
def test_draws_have_the_probabilities_of_the_softmax(monkeypatch):
    monkeypatch.setattr(best_keys, "TILE", 3)
    q, k, v = normal(0, (2, 2, 3), (5, 1, 3), (5, 1, 2))
    draws = jax.jit(jax.vmap(lambda key: hard(q, k, v, sample=key, straight_through=False, mask=WITHOUT_1)))
    drawn = draws(jax.random.split(jax.random.key(0), 4000))
    weights = np.asarray(jattn.attention_weights(q, k, mask=WITHOUT_1)).swapaxes(0, 1)
    share = (np.asarray(drawn.index)[..., None] == np.arange(5)).mean(0)
    close(share, weights, 4 * 0.5 / np.sqrt(4000))
    assert not share[..., 1].any()
    chosen = np.take_along_axis(weights[None], np.asarray(drawn.index)[..., None], -1)[..., 0]
    close(np.exp(drawn.log_probability), chosen, 1e-5)
    close(drawn.out, v[np.asarray(drawn.index), 0], 0)


def test_without_a_sample_the_likeliest_key():
    q, k, v = normal(1, (3, 6, 2, 4), (3, 6, 2, 4), (3, 6, 2, 2))
    drawn = jax.jit(lambda *a: hard(*a, sample=None, straight_through=False, mask=masks.Causal()))(q, k, v)
    weights = jattn.attention_weights(q, k, mask=masks.Causal())
    np.testing.assert_array_equal(drawn.index, np.swapaxes(np.argmax(weights, -1), 1, 2))
    same = jax.jit(lambda *a: hard(*a, sample=None, straight_through=True, mask=masks.Causal()))(q, k, v)
    np.testing.assert_array_equal(same.out, drawn.out)


@pytest.mark.exhaustive
def test_reinforce_is_unbiased():
    """Summed over everything that may be drawn, by its probability, it is the gradient of the expected loss."""
    q, k, v = (jnp.asarray(x) for x in normal(4, (1, 1, 3), (4, 1, 3), (4, 1, 2)))
    loss_of = lambda out: jnp.sin(out).sum()  # noqa: E731

    def expected(q, k, v):
        weights = jattn.attention_weights(q, k)[0, 0]
        return sum(weights[j] * loss_of(v[j]) for j in range(4))

    def surrogate(q, k, v, key):
        drawn = hard(q, k, v, sample=key, straight_through=False)
        loss = loss_of(drawn.out)
        return loss + reinforce(loss, drawn.log_probability.sum(), 0.7), drawn

    one = jax.jit(jax.grad(surrogate, argnums=(0, 1, 2), has_aux=True))
    found = {}
    for seed in range(60):
        gradient, drawn = one(q, k, v, jax.random.key(seed))
        found[int(drawn.index[0, 0])] = float(jnp.exp(drawn.log_probability[0, 0])), gradient
    assert sorted(found) == [0, 1, 2, 3]
    mean = [sum(p * gradient[i] for p, gradient in found.values()) for i in range(3)]
    for ours, exact in zip(mean, jax.jit(jax.grad(expected, argnums=(0, 1, 2)))(q, k, v), strict=True):
        close(ours, exact, 1e-5)


@pytest.mark.parametrize("straight_through", rows([False, True], ["True"]))
def test_empty_rows_and_masked_nan(straight_through):
    q, k, v = normal(5, (4, 2, 3), (4, 2, 3), (4, 2, 2))
    k[1], v[1] = np.nan, np.nan
    mask = masks.of(lambda q, k: (q > 0) & (k != 1))

    def run(q, k, v):
        drawn = hard(q, k, v, sample=jax.random.key(0), straight_through=straight_through, mask=mask)
        return drawn.out.sum() + drawn.log_probability.sum(), drawn

    gradients, drawn = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert (np.asarray(drawn.index)[0] == -1).all() and (np.asarray(drawn.index)[1:] >= 0).all()
    assert not np.asarray(drawn.out)[0].any() and not np.asarray(drawn.log_probability)[0].any()
    assert all(np.isfinite(one).all() for one in gradients) and not np.asarray(gradients[0])[0].any()


def test_reinforce_alone():
    losses, logs = normal(6, (3,), (3,))
    term = lambda logs: reinforce(jnp.asarray(losses), logs, 0.5)  # noqa: E731
    assert not np.asarray(term(jnp.asarray(logs))).any()
    close(jax.vmap(jax.grad(lambda log, loss: reinforce(loss, log, 0.5)))(logs, losses), losses - 0.5, 1e-6)
    with pytest.raises(ValueError, match="`log_probability` must have the shape of `loss`"):
        reinforce(jnp.ones(3), jnp.ones((3, 2)))


def test_what_cannot_be_drawn_from():
    q = jnp.ones((3, 1, 2))
    with pytest.raises(ValueError, match="`normalizer` must be left out"):
        hard(q, q, q, sample=None, straight_through=True, normalizer=jattn.normalizers.Sigmoid())
    with pytest.raises(ValueError, match="`sample` must be one random key"):
        hard(q, q, q, sample=0, straight_through=True)
    with pytest.raises(ValueError, match="`wrong` is not an argument"):
        hard(q, q, q, sample=None, straight_through=True, wrong=1)


def test_a_baseline_of_another_shape_is_refused():
    """It would broadcast, and the sum be that of more losses than there are."""
    with pytest.raises(ValueError, match=r"`baseline` must be one number, or have the shape \(3,\) of `loss`"):
        reinforce(jnp.ones(3), jnp.ones(3), jnp.zeros((3, 1)))
    assert reinforce(jnp.ones(3), jnp.ones(3), jnp.zeros(3)).shape == (3,)


def test_a_choice_of_estimator_that_is_neither_is_refused():
    rows = jnp.ones((3, 1, 4))
    with pytest.raises(ValueError, match="`straight_through` must be True or False; got 'yes'"):
        hard(rows, rows, rows, sample=None, straight_through="yes")
