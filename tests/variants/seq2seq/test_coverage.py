"""Coverage equals its recurrence, written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from variant_layers import check_layer

import jattn
from jattn.variants.seq2seq import CoverageAttention, coverage_loss, coverage_of

NAMES = ("source", "state", "coverage", "vector", "bias")
SHAPES = ((3, 4), (2, 4), (4,), (4,), (4,))
ALLOWED = np.array([True, True, False, True, True])


def random_parameters():
    """The term of coverage starts as zeros, which would hide what it does."""
    return {name: jnp.asarray(array) for name, array in zip(NAMES, normal(9, *SHAPES), strict=True)}


def truth(states, sources, w_h, w_s, w_c, v, b, allowed=ALLOWED):
    """Weights and contexts, side by side."""
    coverage = np.zeros(len(sources))
    out = []
    for state in states:
        e = np.array([v @ np.tanh(sources[i] @ w_h + state @ w_s + w_c * coverage[i] + b) for i in range(len(sources))])
        a = np.where(allowed, np.exp(e), 0)
        a = a / a.sum()
        coverage = coverage + a
        out.append(np.concatenate([a, a @ sources]))
    return np.array(out)


def test_recurrence():
    given = normal(0, (3, 2), (5, 3), *SHAPES)

    def ours(states, sources, *parameters):
        layer = CoverageAttention(2, 3, 4)
        attended = layer(dict(zip(NAMES, parameters, strict=True)), states, sources, jnp.asarray(ALLOWED))
        return jnp.concatenate([attended.weights, attended.context], -1)

    check(ours, truth, *given)


@pytest.mark.exhaustive
@pytest.mark.parametrize("coverage", [True, False])
def test_as_a_module(coverage):
    states, sources = normal(1, (2, 3, 2), (2, 5, 3))
    check_layer(CoverageAttention(2, 3, 4, coverage), jnp.asarray(states), jnp.asarray(sources))


@pytest.mark.exhaustive
def test_without_coverage_it_is_additive_attention():
    states, sources = map(jnp.asarray, normal(2, (2, 3, 3), (2, 5, 3)))
    layer = CoverageAttention(3, 3, 4, coverage=False)
    p = layer.init(jax.random.key(0))
    similarity = jattn.similarities.Additive(p["state"], p["source"], p["vector"], p["bias"])
    heads = lambda x: x[..., None, :]  # noqa: E731
    want = jattn.attention(heads(states), heads(sources), heads(sources), similarity=similarity)[..., 0, :]
    np.testing.assert_allclose(layer(p, states, sources).context, want, rtol=1e-5, atol=1e-6)


def test_coverage_of_earlier_steps_only():
    (scores,) = normal(3, (2, 4, 5))
    weights = jax.nn.softmax(scores)

    def definition(weights):
        return np.stack([[w[:t].sum(0) for t in range(len(w))] for w in weights])

    check(coverage_of, definition, np.asarray(weights))
    assert np.all(coverage_of(weights)[:, 0] == 0)


def test_coverage_loss():
    (scores,) = normal(4, (4, 5))

    def definition(weights):
        seen, losses = np.zeros(5), []
        for a in weights:
            losses.append(sum(min(a[i], seen[i]) for i in range(5)))
            seen = seen + a
        return np.array(losses)

    weights = np.array(jax.nn.softmax(scores))
    weights[0] = [0.5, 0.3, 0.1, 0.06, 0.04]
    check(coverage_loss, definition, weights)
    assert coverage_loss(weights)[0] == 0


def test_a_step_carries_what_the_layer_sums():
    states, sources = map(jnp.asarray, normal(5, (3, 2), (5, 3)))
    layer = CoverageAttention(2, 3, 4)
    parameters = random_parameters()
    every = layer(parameters, states, sources)
    np.testing.assert_allclose(every.coverage[:-1], coverage_of(every.weights)[1:], rtol=1e-6)
    step = layer.step(parameters, every.coverage[1], states[2], layer.keys(parameters, sources), sources)
    np.testing.assert_allclose(step.context, every.context[2], rtol=1e-6)


@pytest.mark.exhaustive
def test_later_states_change_nothing_before():
    states, sources = map(jnp.asarray, normal(6, (4, 2), (5, 3)))
    layer = CoverageAttention(2, 3, 4)
    parameters = random_parameters()
    jacobian = jax.jacobian(lambda s: layer(parameters, s, sources).context)(states)
    for t in range(4):
        assert np.all(jacobian[t, :, t + 1 :] == 0)
        assert t == 0 or np.any(jacobian[t, :, :t] != 0)


def test_padding_and_steps_that_may_look_nowhere():
    states, sources = map(jnp.asarray, normal(7, (2, 3, 2), (2, 5, 3)))
    allowed = jnp.stack([jnp.asarray(ALLOWED), jnp.zeros(5, bool)])
    sources = sources.at[0, 2].set(jnp.nan).at[1].set(jnp.nan)
    layer = CoverageAttention(2, 3, 4)
    parameters = random_parameters()

    def loss(parameters, states, sources):
        return jnp.sin(layer(parameters, states, sources, allowed).context).sum()

    attended = layer(parameters, states, sources, allowed)
    assert np.all(attended.context[1] == 0)
    assert np.all(attended.weights[1] == 0)
    assert np.isfinite(attended.context).all()
    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1, 2))(parameters, states, sources)):
        assert np.isfinite(gradient).all()


def test_bfloat16():
    states, sources = (jnp.asarray(x, jnp.bfloat16) for x in normal(8, (3, 2), (5, 3)))
    layer = CoverageAttention(2, 3, 4)
    attended = layer(layer.init(jax.random.key(0)), states, sources)
    assert attended.context.dtype == jnp.bfloat16
    assert attended.weights.dtype == jnp.float32


def test_errors():
    layer = CoverageAttention(2, 3, 4)
    parameters = random_parameters()
    with pytest.raises(ValueError, match=r"`states` must have shape .* with state_features = 2"):
        layer(parameters, jnp.ones((3, 3)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"`allowed` must have shape \[5\]; got \(4,\)"):
        layer(parameters, jnp.ones((3, 2)), jnp.ones((5, 3)), jnp.ones(4, bool))
    with pytest.raises(ValueError, match=r"`allowed` must be booleans"):
        layer(parameters, jnp.ones((3, 2)), jnp.ones((5, 3)), jnp.ones(5))
    with pytest.raises(ValueError, match=r"`weights` must have shape"):
        coverage_loss(jnp.ones(3))


def test_sure_scores_do_not_overflow():
    states, sources = map(jnp.asarray, normal(10, (3, 2), (5, 3)))
    parameters = random_parameters()
    parameters["vector"] = 1e4 * parameters["vector"]
    attended = CoverageAttention(2, 3, 4)(parameters, states, sources)
    np.testing.assert_allclose(attended.weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(attended.weights.argmax(-1), attended.scores.argmax(-1))


def test_no_steps():
    assert coverage_of(jnp.ones((2, 0, 5))).shape == (2, 0, 5)
    assert coverage_loss(jnp.ones((2, 0, 5))).shape == (2, 0)
    assert CoverageAttention(2, 3, 4)(random_parameters(), jnp.ones((0, 2)), jnp.ones((5, 3))).context.shape == (0, 3)
