"""The attention-free transformers equal their sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows

from jattn.variants.attention_free import aft_full, aft_local, aft_simple, aft_state, aft_step, relative_bias


def truth(query, key, value, bias=None, causal=False, window=None):
    """`bias [features, length, length]`."""
    length, features = key.shape[-2:]
    t, s = np.indices((length, length))
    bias = np.zeros((features, length, length)) if bias is None else np.broadcast_to(bias, (features, length, length))
    if window is not None:
        bias = np.where(abs(t - s) < window, bias, 0)
    scores = np.moveaxis(key, -1, -2)[..., None, :] + bias
    scores = np.where((s <= t) | (not causal), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mean = np.einsum("...dts,...sd->...td", weights, value)
    return mean / (1 + np.exp(-query))


CAUSAL_OR_NOT = pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.exhaustive), True])


@CAUSAL_OR_NOT
def test_full(causal):
    query, key, value, bias = normal(0, (5, 3), (5, 3), (5, 3), (5, 5))
    check(jax.jit(lambda *a: aft_full(*a, causal=causal)), lambda *a: truth(*a, causal=causal), query, key, value, bias)


@CAUSAL_OR_NOT
def test_simple(causal):
    query, key, value = normal(1, (2, 7, 2), (2, 7, 2), (2, 7, 2))
    check(jax.jit(lambda *a: aft_simple(*a, causal=causal)), lambda *a: truth(*a, causal=causal), query, key, value)


@CAUSAL_OR_NOT
@pytest.mark.parametrize("window", [3, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1, 9))])
def test_local(causal, window):
    query, key, value, bias = normal(2, (7, 2), (7, 2), (7, 2), (7, 7))
    check(
        jax.jit(lambda *a: aft_local(*a, window=window, causal=causal)),
        lambda *a: truth(*a, causal=causal, window=window),
        query,
        key,
        value,
        bias,
    )


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_conv_is_local_with_a_relative_bias(causal):
    query, key, value, table = normal(3, (2, 9, 4), (2, 9, 4), (2, 9, 4), (2, 5))
    run = jax.jit(lambda *a: aft_local(*a[:3], relative_bias(a[3], 9), window=3, causal=causal))
    got = run(query, key, value, table)
    bias = np.zeros((2, 9, 9))
    for t, s in np.ndindex(9, 9):
        if abs(s - t) < 3:
            bias[:, t, s] = table[:, s - t + 2]
    close(got, truth(query, key, value, np.repeat(bias, 2, 0), causal), 1e-5)


@pytest.mark.exhaustive
def test_a_window_of_all_is_full():
    query, key, value, bias = normal(4, (33, 2), (33, 2), (33, 2), (33, 33))
    both = jax.jit(lambda *a: (aft_local(*a, window=33), aft_full(*a)))
    close(*both(query, key, value, bias), 1e-5)


@pytest.mark.parametrize("form", rows(["full", "simple", "local"], ["local"]))
def test_keys_of_any_size(form):
    """A running maximum: an early output is right though a later key is e^200 times larger."""
    query, key, value, bias = normal(5, (9, 2), (9, 2), (9, 2), (9, 9))
    key = key + np.linspace(-200, 200, 9, dtype=np.float32)[:, None]
    got = {
        "full": lambda *a: aft_full(*a, causal=True),
        "simple": lambda *a: aft_simple(*a[:3], causal=True),
        "local": lambda *a: aft_local(*a, window=2, causal=True),
    }[form]
    got = jax.jit(got)(query, key, value, bias)
    near = {"full": 9, "simple": 0, "local": 2}[form]
    close(got, truth(query, key, value, bias, True, near), 1e-5)


def test_step_is_the_call():
    query, key, value = normal(6, (2, 9, 3), (2, 9, 3), (2, 9, 3), spread=5)
    want, state = jax.jit(lambda *a: aft_simple(*a, causal=True))(query, key, value), aft_state((2, 3))
    step = jax.jit(aft_step)
    for t in range(9):
        out, state = step(query[:, t], key[:, t], value[:, t], state)
        close(out, want[:, t], 1e-5)


@pytest.mark.parametrize("form", rows(["full", "simple", "local"], ["simple"]))
def test_the_future_does_not_reach_the_past(form):
    query, key, value, bias = normal(7, (9, 2), (9, 2), (9, 2), (9, 9))

    @jax.jit
    def run(query, key, value):
        if form == "full":
            return aft_full(query, key, value, bias, causal=True)
        if form == "simple":
            return aft_simple(query, key, value, causal=True)
        return aft_local(query, key, value, bias, window=3, causal=True)

    for jacobian in jax.jit(jax.jacobian(run, (1, 2)))(query, key, value):
        size = np.abs(jacobian).max((1, 3))
        assert not np.triu(size, 1).any()
        assert (size[1:, 0] > 0).all()
    gradients = jax.jit(jax.grad(lambda *a: run(*a)[:5].sum(), (0, 1, 2)))
    want = np.asarray(run(query, key, value))
    for poisoned in (1, 2):
        given = [array.copy() for array in (query, key, value)]
        given[poisoned][5, 0] = np.nan
        got = np.asarray(run(*given))
        close(got[:5], want[:5], 1e-6)
        close(got[:, 1], want[:, 1], 1e-6)
        assert np.isnan(got[5:, 0]).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients(*given))


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_key_of_minus_infinity_is_padding(causal):
    query, key, value = normal(8, (9, 2), (9, 2), (9, 2))
    key[6:], value[6:] = -np.inf, np.nan

    @jax.jit
    def everything(query, key, value):
        def simple(*arrays):
            return aft_simple(*arrays, causal=causal)

        def local(*arrays):
            length = len(arrays[0])
            return aft_local(*arrays, jnp.zeros((length, length)), window=2, causal=causal)

        found = []
        for run in (simple, local):
            out, pull = jax.vjp(lambda key, run=run: run(query, key, value), key)
            found.append((out, run(query[:6], key[:6], value[:6]), *pull(jnp.zeros_like(out).at[:6].set(1))))
        return found

    for got, alone, gradient in everything(query, key, value):
        close(got[:6], alone, 1e-6)
        assert np.isfinite(gradient).all()
    key[:] = -np.inf
    assert not np.asarray(everything(query, key, value)[0][0]).any()


@pytest.mark.exhaustive
def test_bfloat16():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in normal(9, (63, 4), (63, 4), (63, 4)))
    got = jax.jit(lambda *a: aft_simple(*a, causal=True))(query, key, value)
    assert got.dtype == jnp.bfloat16
    wide = [np.asarray(x, np.float64) for x in (query, key, value)]
    close(got.astype(jnp.float32), truth(*wide, causal=True), 1e-2)


def test_bad_input_is_named():
    x = jnp.ones((5, 4))
    with pytest.raises(ValueError, match=r"`bias` must have shape \[length, length\] with length = 5; got \(4, 5\)"):
        aft_full(x, x, x, jnp.zeros((4, 5)))
    with pytest.raises(ValueError, match="`value` must have shape"):
        aft_simple(x, x, jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="number of heads that divides the 4 features"):
        aft_local(x, x, x, jnp.zeros((3, 5, 5)), window=2)
    with pytest.raises(ValueError, match="`window` must be a positive int"):
        aft_local(x, x, x, jnp.zeros((5, 5)), window=0)
    with pytest.raises(ValueError, match="odd number; got 4"):
        relative_bias(jnp.zeros((1, 4)), 5)


def test_a_state_of_another_dtype_is_refused():
    """It would be summed in, and what is small beside it lost."""
    x = jnp.ones((2, 8))
    narrow = jax.tree.map(lambda one: one.astype(jnp.bfloat16), aft_state((2, 8)))
    with pytest.raises(ValueError, match=r"`state.out` must be float32 of shape \(2, 8, 1\).*got bfloat16"):
        aft_step(x, x, x, narrow)
    with pytest.raises(ValueError, match="`state` must be a Partial"):
        aft_step(x, x, x, None)
    with pytest.raises(ValueError, match="`batch` must be a tuple"):
        aft_state(8)
    with jax.enable_x64(True):
        wide = jnp.ones((2, 8), jnp.float64)
        assert aft_step(wide, wide, wide, aft_state((2, 8), jnp.float64))[1].out.dtype == "float64"


def test_numbers_of_pairs_that_are_none_are_named():
    x = jnp.ones((2, 5, 8))
    for bias in (jnp.array(1.0), jnp.ones((5, 5), int)):
        with pytest.raises(ValueError, match="`bias` must"):
            aft_full(x, x, x, bias)
        with pytest.raises(ValueError, match="`bias` must"):
            aft_local(x, x, x, bias, window=2)
    for length in (3.0, -1):
        with pytest.raises(ValueError, match="`length` must be an int"):
            relative_bias(jnp.ones((1, 3)), length)
