"""Forget: the sum of the log gates in between, accurate at any length, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal

import jattn
from jattn.foundation.pieces import align
from jattn.masks import Causal
from jattn.scores import Forget, forget


def gates_of(seed, *shape):
    return -np.random.default_rng(seed).exponential(size=shape).astype(np.float32)


def between(gates, queries):
    """Σ of the gates behind the key and up to the query, by a loop: `[heads, q, k]`."""
    out = np.zeros((len(gates), len(queries), gates.shape[-1]))
    for row, i in enumerate(queries):
        for j in range(gates.shape[-1]):
            out[:, row, j] = gates[:, min(i, j) + 1 : max(i, j) + 1].sum(-1)
    return out


@pytest.mark.parametrize("queries", [None, [6, 2, 0]])
def test_it_adds_the_gates_between(queries, monkeypatch):
    """Within a block of tokens and across blocks."""
    monkeypatch.setattr(forget, "BLOCK", 3)
    at = np.arange(8) if queries is None else np.array(queries)
    (scores,) = normal(0, (2, len(at), 8))

    def ours(scores, gates):
        piece = align(Forget.of(gates, queries=queries), (), {"head": 2, "query": len(at), "key": 8})
        return piece.modify(scores, jnp.asarray(at[:, None]), jnp.arange(8))

    check(ours, lambda scores, gates: scores + between(gates, at), scores, gates_of(1, 2, 8))


@pytest.mark.exhaustive
@pytest.mark.parametrize("kept", [0.5, pytest.param(0.99, marks=pytest.mark.exhaustive)])
def test_length_costs_no_digits(kept):
    """Output and gradients in float32 are those of float64. Differences of plain running sums are off by 5e-5 here."""
    length = 1500
    query, key, value, cotangent = normal(2, *[(length, 1, 4)] * 4)
    gates = (np.log(kept) * 2 * np.random.default_rng(3).uniform(size=(1, length))).astype(np.float32)

    @jax.jit
    def run(query, key, value, gates, cotangent):
        def attend(query, gates):
            return jattn.attention(query, key, value, mask=Causal(), scores=Forget.of(gates), implementation="tiled")

        out, pull = jax.vjp(attend, query, gates)
        return out, *pull(cotangent)

    ours = run(query, key, value, gates, cotangent)
    with jax.enable_x64(True):
        wanted = [np.asarray(one) for one in run(*map(np.float64, (query, key, value, gates, cotangent)))]
    for one, truth in zip(ours, wanted, strict=True):
        assert one.dtype == np.float32 and truth.dtype == np.float64
        assert np.abs(one - truth).max() < 2e-6 * np.abs(truth).max()


def test_a_gate_of_zero_forgets_and_has_no_gradient_elsewhere():
    query, key, value = normal(4, *[(6, 1, 4)] * 3)
    gates = gates_of(5, 1, 6)
    gates[0, 3] = -np.inf

    def attend(gates, key):
        return jattn.attention(query, key, value, mask=Causal(), scores=Forget.of(gates))

    @jax.jit
    def run(gates, key):
        apart = Causal() & jattn.masks.SameSegment(np.array([0, 0, 0, 1, 1, 1]))
        want = jattn.attention(query, key, value, mask=apart, scores=Forget.of(gates))
        out, pull = jax.vjp(attend, gates, key)
        return out, want, pull(jnp.cos(out).at[:3].set(0))

    out, want, gradients = run(gates, key)
    close(out, want, 1e-6)
    assert all(np.isfinite(one).all() for one in gradients)
    assert np.abs(gradients[0][0, :4]).max() < 1e-6 and not np.any(gradients[1][:3])


def test_queries_of_each_example():
    """Examples of a batch that are at different places of a cache."""
    gates, queries = np.stack([gates_of(one, 2, 7) for one in (5, 6)]), np.array([[1, 4], [3, 6]])
    together = Forget.of(gates, queries=queries)
    for i in range(2):
        alone = Forget.of(gates[i], queries=queries[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[min(i, len(a) - 1)], b, atol=1e-6), together, alone)


@pytest.mark.exhaustive
def test_a_million_tokens_that_forget_everything_do_not_overflow():
    sums = forget.running_sums(jnp.full(1_000_000, -jnp.inf))
    assert (np.diff(sums.whole) < -1000).all()


def test_tiles_are_skipped_as_without_it():
    given = [jax.ShapeDtypeStruct((2048, 2, 8), jnp.float32)] * 3
    faded = jattn.explain(*given, mask=Causal(), scores=Forget.of(np.zeros((2, 2048), np.float32)))
    np.testing.assert_array_equal(faded.plan.states, jattn.explain(*given, mask=Causal()).plan.states)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log_gates": np.ones((1, 5), int)}, r"`log_gates` must be a floating-point array \[batch..., head, key\]"),
        ({"log_gates": np.zeros(5, np.float32)}, "Which axes are missing is not guessed"),
        ({"log_gates": np.full((1, 5), 0.5, np.float32)}, "`log_gates` must be at most 0.*got values up to 0.5"),
        ({"log_gates": np.zeros((1, 5), np.float32), "queries": [0.5]}, r"`queries` must be integers \[q_len\]"),
        ({"log_gates": np.zeros((1, 5), np.float32), "queries": [[0]]}, r"`queries` .* shape \(1, 1\)"),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        Forget.of(**given)
