"""Chains: log Z, marginals and the context are sums over all labelings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants.structured import Segmentation, chain_log_partition, chain_marginals, segmentation_attention


def labelings(potentials, transitions):
    """Every labeling of one chain with its weight exp(score)."""
    length, states = potentials.shape
    steps = np.broadcast_to(transitions, (max(length - 1, 0), states, states))
    for labels in itertools.product(range(states), repeat=length):
        score = sum(potentials[i, z] for i, z in enumerate(labels))
        score += sum(steps[i, a, b] for i, (a, b) in enumerate(itertools.pairwise(labels)))
        yield labels, np.exp(score)


def true_log_partition(potentials, transitions):
    with np.errstate(divide="ignore"):
        return np.log(sum(weight for _, weight in labelings(potentials, transitions)))


def true_marginals(potentials, transitions):
    out = np.zeros_like(potentials)
    for labels, weight in labelings(potentials, transitions):
        out[np.arange(len(labels)), labels] += weight
    return out / max(out[0].sum(), 1e-300)


@pytest.mark.parametrize("length", rows([1, 5], ["5"]))
def test_log_partition_and_marginals_are_sums_over_labelings(length):
    """The gradient of marginals is the second derivative of log Z."""
    potentials, shared, each = normal(0, (length, 3), (3, 3), (length - 1, 3, 3))
    for transitions in (shared, each):
        check(chain_log_partition, true_log_partition, potentials, transitions)
        check(chain_marginals, true_marginals, potentials, transitions)


def test_context_is_the_expected_selection():
    scores, transitions, values = normal(1, (5,), (2, 2), (5, 3))

    def truth(scores, transitions, values):
        both = np.stack([np.zeros_like(scores), scores], -1)
        return true_marginals(both, transitions)[:, 1] @ values

    check(segmentation_attention, truth, scores, transitions, values)


def test_examples_end_at_their_lengths_and_nan_behind_stays_there():
    potentials, transitions = normal(2, (2, 3, 5, 2), (2, 3, 4, 2, 2))
    lengths = np.array([[5, 1, 3], [0, 4, 2]])
    behind = np.arange(5) >= lengths[..., None]
    broken = np.where(behind[..., None], np.nan, potentials)
    broken_steps = np.where(behind[..., 1:, None, None], np.nan, transitions)
    got, totals = jax.jit(lambda *a: (chain_marginals(*a, lengths=lengths), chain_log_partition(*a, lengths=lengths)))(
        broken, broken_steps
    )
    for place in np.ndindex(2, 3):
        n = lengths[place]
        want = np.zeros((5, 2))
        if n:
            one, steps = potentials[place][:n].astype(float), transitions[place][: n - 1].astype(float)
            want[:n] = true_marginals(one, steps)
            close(totals[place], true_log_partition(one, steps), 1e-5)
        close(got[place], want, 1e-5)
    assert totals[1, 0] == 0
    values = np.where(behind[..., None], np.nan, 1).astype(np.float32)

    def loss(scores, steps, values):
        return segmentation_attention(scores, steps, values, lengths=lengths).sum()

    for gradient in jax.jit(jax.grad(loss, (0, 1, 2)))(broken[..., 1], broken_steps, values):
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[behind[..., -gradient.shape[2] :]] == 0).all()


@pytest.mark.exhaustive
def test_work_is_linear_in_the_length():
    def temporaries(length):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((length, 2), (2, 2))]
        gradient = jax.grad(lambda *given: jnp.sin(chain_marginals(*given)).sum(), (0, 1))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.2 * temporaries(4096)


def test_forbidden_states_and_chains_with_nothing_allowed():
    potentials, transitions = normal(3, (4, 2), (2, 2))
    potentials[1, 0] = transitions[1, 1] = -np.inf
    check_value = true_marginals(potentials.astype(float), transitions.astype(float))
    close(jax.jit(chain_marginals)(potentials, transitions), check_value, 1e-5)

    @jax.jit
    def run(potentials):
        gradient = jax.grad(lambda x: jnp.sin(chain_marginals(x, transitions)).sum())(potentials)
        return chain_log_partition(potentials, transitions), chain_marginals(potentials, transitions), gradient

    for nothing in (jnp.full((4, 2), -jnp.inf), jnp.asarray(potentials).at[2].set(-jnp.inf)):
        total, weights, again = run(nothing)
        assert total == -np.inf
        np.testing.assert_array_equal(weights, 0)
        assert np.isfinite(again).all()
    assert np.isfinite(run(potentials)[2]).all()


@pytest.mark.exhaustive
def test_without_transitions_each_position_is_a_sigmoid():
    scores, values = normal(5, (7,), (7, 2))
    close(segmentation_attention(scores, jnp.zeros((2, 2)), values), (1 / (1 + np.exp(-scores))) @ values, 1e-5)


@pytest.mark.exhaustive
def test_long_chains_stay_finite_and_bfloat16_is_summed_in_float32():
    scores = jnp.full((2000,), 3.0, jnp.bfloat16)
    values = jnp.ones((2000, 1), jnp.bfloat16)
    out = segmentation_attention(scores, jnp.zeros((2, 2), jnp.bfloat16), values)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(out[0]), 2000 / (1 + np.exp(-3)), rtol=5e-3)


def test_no_positions():
    assert chain_log_partition(jnp.zeros((3, 0, 2)), jnp.zeros((2, 2))).shape == (3,)
    assert segmentation_attention(jnp.zeros((3, 0)), jnp.zeros((2, 2)), jnp.zeros((3, 0, 4))).shape == (3, 4)


def test_as_a_module():
    (inputs,) = normal(6, (2, 5, 4))
    layer = Segmentation(4, heads=3, head_dim=2)
    out = check_layer(layer, jnp.asarray(inputs), lengths=jnp.array([5, 2]))
    assert out.shape == (2, 3, 2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`transitions` must have shape \[states, states\] with states = 2"):
        chain_marginals(jnp.zeros((4, 2)), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"`transitions` must have shape .* with steps = 3"):
        chain_marginals(jnp.zeros((4, 2)), jnp.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="`potentials` must be floating-point"):
        chain_marginals(jnp.zeros((4, 2), int), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="`lengths` must be an integer of at least 0"):
        chain_marginals(jnp.zeros((4, 2)), jnp.zeros((2, 2)), lengths=jnp.ones(()))
    with pytest.raises(ValueError, match=r"`lengths` must be one integer, or one for each example, of shape \(3,\)"):
        chain_marginals(jnp.zeros((3, 4, 2)), jnp.zeros((2, 2)), lengths=np.array([1, 2]))
    with pytest.raises(ValueError, match="`lengths` must be at most 4, the length of the arrays; got 5"):
        segmentation_attention(jnp.zeros((4,)), jnp.zeros((2, 2)), jnp.zeros((4, 1)), lengths=5)
    with pytest.raises(ValueError, match=r"`values` must have shape \[..., length, features\] with length = 4"):
        segmentation_attention(jnp.zeros((4,)), jnp.zeros((2, 2)), jnp.zeros((5, 1)))
    for sizes in (dict(features=0), dict(features=3, heads=0), dict(features=3, head_dim=0)):
        with pytest.raises(ValueError, match="must be a positive int; got 0"):
            Segmentation(**sizes)
    with pytest.raises(ValueError, match="features = 3"):
        Segmentation(3)({}, jnp.zeros((4, 2)))
