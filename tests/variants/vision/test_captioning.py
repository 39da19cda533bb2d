"""Captioning attention equals its equations; the hard form's estimator is unbiased, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from tiers import rows
from variant_layers import check_layer

import jattn
from jattn.variants.vision import CaptioningAttention, Glimpse, doubly_stochastic_loss, moving_baseline, reinforce_loss

LAYER = CaptioningAttention(2, 3, 4)
SHAPES = ((2, 4), (3, 4), (4,), (4,), (2,), ())


def tree(state, annotation, vector, bias, gate, gate_bias):
    return dict(state=state, annotation=annotation, vector=vector, bias=bias, gate={"kernel": gate, "bias": gate_bias})


def alpha(states, annotations, w_h, w_a, v, b, *_):
    e = np.array([[v @ np.tanh(a @ w_a + h @ w_h + b) for a in annotations] for h in states])
    return np.exp(e) / np.exp(e).sum(-1, keepdims=True)


def truth(states, annotations, *parameters):
    gate, gate_bias = parameters[-2:]
    beta = 1 / (1 + np.exp(-(states @ gate + gate_bias)))
    return beta[:, None] * (alpha(states, annotations, *parameters) @ annotations)


def given(seed=0):
    return [np.asarray(array, np.float32) for array in normal(seed, (3, 2), (5, 3), *SHAPES)]


def test_soft():
    check(lambda h, a, *p: LAYER(tree(*p), h, a), truth, *given())


def test_weights():
    check(lambda h, a, *p: LAYER.attention_weights(tree(*p), h, a), alpha, *given())


@pytest.mark.exhaustive
def test_as_a_module():
    states, annotations = normal(1, (2, 3, 2), (2, 5, 3))
    check_layer(LAYER, jnp.asarray(states), jnp.asarray(annotations))


def test_doubly_stochastic():
    (scores,) = normal(2, (4, 5))
    definition = lambda w: np.array(0.7 * sum((1 - sum(w[t, i] for t in range(4))) ** 2 for i in range(5)))  # noqa: E731
    check(lambda w: doubly_stochastic_loss(w, 0.7), definition, np.asarray(jax.nn.softmax(scores)))
    assert doubly_stochastic_loss(jnp.eye(4)) == 0


@pytest.mark.exhaustive
def test_always_soft_is_the_soft_form():
    states, annotations, *parameters = given(3)
    glimpse = LAYER.hard(tree(*parameters), states, annotations, jax.random.key(0), soft_rate=1.0)
    np.testing.assert_allclose(glimpse.context, truth(states, annotations, *parameters), rtol=1e-5)
    assert not glimpse.sampled.any()
    assert np.all(glimpse.log_probability == 0)
    weights = alpha(states, annotations, *parameters)
    np.testing.assert_allclose(glimpse.entropy, -(weights * np.log(weights)).sum(-1), rtol=1e-5)


@pytest.mark.exhaustive
def test_samples_come_as_often_as_alpha_says():
    states, annotations, *parameters = given(4)
    keys = jax.random.split(jax.random.key(0), 4000)
    glimpse = jax.vmap(lambda key: LAYER.hard(tree(*parameters), states, annotations, key, soft_rate=0.25))(keys)
    weights = alpha(states, annotations, *parameters)
    assert abs(glimpse.sampled.mean() - 0.75) < 0.02
    for t in range(3):
        logs = np.asarray(glimpse.log_probability[:, t])[np.asarray(glimpse.sampled[:, t])]
        for i in range(5):
            share = np.isclose(logs, np.log(weights[t, i]), atol=1e-4).mean()
            assert abs(share - weights[t, i]) < 0.04
    # A sampled step sees one annotation.
    beta = 1 / (1 + np.exp(-(states @ parameters[-2] + parameters[-1])))
    seen = np.asarray(glimpse.context) / beta[:, None]
    gap = np.abs(seen[:, :, None] - annotations).max(-1).min(-1)
    assert np.all(gap[np.asarray(glimpse.sampled)] < 1e-5)


@pytest.mark.exhaustive
def test_reinforce_is_unbiased():
    """Over all ways to look, the estimator's mean is the gradient of the mean log-likelihood."""
    (scores,) = map(jnp.asarray, normal(5, (2, 3)))
    ways = np.array(list(itertools.product(range(3), repeat=2)))
    rewards = jnp.asarray(normal(6, (9,))[0])

    def log_probabilities(scores):
        logs = jax.nn.log_softmax(scores)
        return jnp.stack([logs[[0, 1], way] for way in ways])

    def exact(scores):
        return -(jnp.exp(log_probabilities(scores).sum(-1)) * rewards).sum()

    def estimated(scores, baseline):
        logs = log_probabilities(scores)
        glimpse = Glimpse(jnp.zeros((9, 2, 1)), logs, jnp.zeros((9, 2)), jnp.ones((9, 2), bool))
        losses = reinforce_loss(rewards, glimpse, baseline, entropy_weight=0.0)
        return (jax.lax.stop_gradient(jnp.exp(logs.sum(-1))) * losses).sum()

    for baseline in (0.0, -1.7):
        np.testing.assert_allclose(
            jax.grad(estimated)(scores, jnp.array(baseline)), jax.grad(exact)(scores), rtol=1e-4, atol=1e-6
        )


def test_entropy_and_likelihood_have_their_gradients():
    def loss(likelihood, entropy):
        glimpse = Glimpse(jnp.zeros((2, 1)), jnp.zeros(2), entropy, jnp.zeros(2, bool))
        return reinforce_loss(likelihood, glimpse, jnp.zeros(()), entropy_weight=0.3)

    gradients = jax.grad(loss, (0, 1))(jnp.array(-1.0), jnp.ones(2))
    assert gradients[0] == -1
    np.testing.assert_allclose(gradients[1], [-0.3, -0.3])


def test_hard_gradients_reach_every_parameter():
    states, annotations, *parameters = given(7)

    def loss(parameters, key):
        glimpse = LAYER.hard(parameters, states, annotations, key)
        return reinforce_loss(-jnp.square(glimpse.context - 1).sum(), glimpse, jnp.array(-1.0))

    gradients = jax.jit(jax.grad(loss))(tree(*parameters), jax.random.key(3))
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0)


def test_moving_baseline():
    baseline = moving_baseline(jnp.array(2.0), jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(baseline, 0.9 * 2 + 0.1 * 2.5)
    assert jax.grad(lambda x: moving_baseline(jnp.array(0.0), x))(jnp.ones(2)).sum() == 0


@pytest.mark.parametrize("hard", rows([False, True], ["True"]))
def test_padding_and_nothing_to_look_at(hard):
    states, annotations, *parameters = given(8)
    states, annotations = np.stack([states, states]), np.stack([annotations, annotations])
    annotations[0, 3:] = np.nan
    annotations[1] = np.nan
    mask = jattn.masks.Lengths(key_lengths=jnp.array([3, 0]))

    def run(parameters, states, annotations):
        if hard:
            glimpse = LAYER.hard(parameters, states, annotations, jax.random.key(0), mask=mask)
            return glimpse.context + glimpse.log_probability[..., None] + glimpse.entropy[..., None]
        return LAYER(parameters, states, annotations, mask=mask)

    out = run(tree(*parameters), states, annotations)
    assert np.isfinite(out).all()
    assert np.all(out[1] == 0)
    gradients = jax.grad(lambda *a: jnp.sin(run(*a)).sum(), (0, 1, 2))(tree(*parameters), states, annotations)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()


def test_an_image_without_places():
    states, annotations, *parameters = given(11)
    assert not LAYER(tree(*parameters), states, annotations[:0]).any()
    glimpse = LAYER.hard(tree(*parameters), states, annotations[:0], jax.random.key(0))
    assert glimpse.context.shape == (3, 3) and glimpse.entropy.shape == (3,)
    assert not any(np.any(part) for part in glimpse)


def test_bfloat16():
    states, annotations, *parameters = given(9)
    narrow = lambda x: jnp.asarray(x, jnp.bfloat16)  # noqa: E731
    out = LAYER(tree(*parameters), narrow(states), narrow(annotations))
    assert out.dtype == jnp.bfloat16
    glimpse = LAYER.hard(tree(*parameters), narrow(states), narrow(annotations), jax.random.key(0))
    assert glimpse.context.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), truth(states, annotations, *parameters), atol=0.05)


def test_errors():
    states, annotations, *parameters = given(10)
    with pytest.raises(ValueError, match=r"`annotations` must have shape .* with annotation_features = 3"):
        LAYER(tree(*parameters), states, states)
    with pytest.raises(ValueError, match=r"`soft_rate` must be a Python number from 0 to 1; got 1.5"):
        LAYER.hard(tree(*parameters), states, annotations, jax.random.key(0), soft_rate=1.5)
    with pytest.raises(ValueError, match=r"`key` must be one random key"):
        LAYER.hard(tree(*parameters), states, annotations, 7)
    glimpse = LAYER.hard(tree(*parameters), states, annotations, jax.random.key(0))
    with pytest.raises(ValueError, match=r"`baseline` must be one number"):
        reinforce_loss(jnp.array(0.0), glimpse, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"`features` must be a positive int"):
        CaptioningAttention(2, 3, 0)


def test_a_soft_rate_of_one_is_the_soft_form():
    """Also as an int."""
    states, annotations, *parameters = given(4)
    found = [LAYER.hard(tree(*parameters), states, annotations, jax.random.key(0), soft_rate=one) for one in (1, 1.0)]
    for glimpse in found:
        np.testing.assert_allclose(glimpse.context, LAYER(tree(*parameters), states, annotations), atol=1e-5)
        assert not glimpse.sampled.any()


def test_baselines_that_do_not_fit_are_named():
    none = Glimpse(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 3), bool))
    for baseline in (jnp.zeros(3), jnp.zeros((2, 1))):
        with pytest.raises(ValueError, match=r"`baseline` must be one number, or have the shape \(2,\)"):
            reinforce_loss(jnp.zeros(2), none, baseline)
    with pytest.raises(ValueError, match="`log_likelihood` must be of a caption at least"):
        moving_baseline(jnp.array(0.0), jnp.ones(0))
