"""Kernelized attention equals the dense sum of its weights, in every form and for every feature map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows

from jattn import masks
from jattn.variants.kernelized import (
    ELU,
    Cosine,
    Function,
    Learned,
    RandomFeatures,
    Taylor,
    kernel_state,
    kernelized_attention,
    kernelized_step,
    orthogonal_projection,
)

rng = np.random.default_rng(7)
W = rng.normal(size=(5, 3))
MAPS = [rng.normal(size=shape) for shape in ((2, 3, 4), (2, 4), (2, 3, 4), (2, 4))]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def learned(x, kernel, bias):
    made = np.einsum("...hd,hdf->...hf", x, kernel) + bias
    return np.concatenate([softmax(made), softmax(-made)], -1)


def cosine(x, length=20):
    angle = np.pi / 2 * np.arange(x.shape[-3])[:, None, None] / length
    return np.concatenate([np.maximum(x, 0) * np.cos(angle), np.maximum(x, 0) * np.sin(angle)], -1)


def positive(x, sides=(1,)):
    x = x / 3**0.25
    size = (x**2).sum(-1, keepdims=True) / 2
    return np.concatenate([np.exp(s * (x @ W.T) - size) for s in sides], -1) / np.sqrt(5 * len(sides))


def taylor(x):
    x = x / 3**0.25
    return np.concatenate(
        [np.ones_like(x[..., :1]), x, np.einsum("...i,...j->...ij", x, x).reshape(*x.shape[:-1], -1) / 2**0.5], -1
    )


def elu(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


wide = functools.partial(jnp.asarray, dtype=jnp.float32)
# name: the map, φ of queries, φ of keys
CASES = {
    "elu": (ELU(), elu, elu),
    "cosine": (Cosine(20), cosine, cosine),
    "taylor": (Taylor(), taylor, taylor),
    "learned": (Learned(*map(wide, MAPS)), lambda x: learned(x, *MAPS[:2]), lambda x: learned(x, *MAPS[2:])),
    "positive": (RandomFeatures(wide(W)), positive, positive),
    "hyperbolic": (RandomFeatures(wide(W), "hyperbolic"), *[functools.partial(positive, sides=(1, -1))] * 2),
    "relu": (RandomFeatures(wide(W), "relu"), *[lambda x: np.maximum(x / 3**0.25 @ W.T, 0) / 5**0.5] * 2),
}


def truth(query, key, value, name="elu", causal=False, normalize=True, epsilon=0.0, seen=None):
    _, of_query, of_key = CASES[name]
    weights = np.einsum("...ihf,...jhf->...hij", of_query(query), of_key(key))
    if causal:
        weights = np.tril(weights)
    if seen is not None:
        weights = np.where(seen, weights, 0)
    if normalize:
        total = weights.sum(-1, keepdims=True) + epsilon
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    return np.einsum("...hij,...jhv->...ihv", weights, value)


def arrays(seed, length=7, batch=(), spread=1.0):
    return normal(seed, *[(*batch, length, 2, d) for d in (3, 3, 2)], spread=spread)


@pytest.mark.parametrize(
    ("name", "causal", "normalize"),
    [(name, True, True) for name in ("elu", "hyperbolic")]
    + [
        pytest.param(*one, marks=pytest.mark.exhaustive)
        for one in [
            *((name, True, True) for name in CASES if name not in ("elu", "hyperbolic")),
            *((name, False, True) for name in CASES),
            *((name, causal, False) for name, causal in (("elu", True), ("hyperbolic", True), ("hyperbolic", False))),
        ]
    ],
)
def test_is_the_dense_sum(name, causal, normalize):
    features = CASES[name][0]
    query, key, value = arrays(0, length=5)
    if name in ("relu", "cosine"):  # away from the kink of the ReLU, and from rows of no weight
        query, key = np.abs(query) + 0.1, np.abs(key) + 0.1

    @jax.jit
    def ours(*a):
        return kernelized_attention(*a, features, causal=causal, normalize=normalize, chunk=2)[0]

    check(ours, lambda *a: truth(*a, name, causal, normalize), query, key, value, tolerance=2e-5)


@pytest.mark.parametrize("name", rows(["elu", "cosine", "hyperbolic"], ["elu"]))
def test_step_is_every_form_at_every_split(name):
    features, length = CASES[name][0], 9
    query, key, value = arrays(1, length, (2,), spread=3.0)
    want = truth(*(x.astype(np.float64) for x in (query, key, value)), name, causal=True)
    step = jax.jit(lambda q, k, v, state, t: kernelized_step(q, k, v, features, state, position=t))
    run = jax.jit(
        lambda q, k, v, state, at, form: kernelized_attention(
            q, k, v, features, causal=True, initial_state=state, positions=at, implementation=form, chunk=4
        ),
        static_argnames="form",
    )
    stepped, state = [], kernel_state(features, (2,), 2, 3, 2)
    for t in range(length):
        out, state = step(query[:, t], key[:, t], value[:, t], state, t)
        stepped.append(out)
    close(np.stack(stepped, 1), want, 2e-5)
    empty = kernel_state(features, (2,), 2, 3, 2)
    for form, splits in (("scan", (4,)), ("chunked", (0, 3, 8))):
        for split in splits:
            first, between = run(*(x[:, :split] for x in (query, key, value)), empty, jnp.arange(split), form)
            second, last = run(*(x[:, split:] for x in (query, key, value)), between, jnp.arange(split, length), form)
            close(np.concatenate([first, second], 1), want, 2e-5, f"{form}, split at {split}")
            for a, b in zip(last, state, strict=True):
                close(a, b, 2e-5)


@pytest.mark.parametrize("name", rows(["elu", "positive"], ["positive"]))
@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_padding_has_no_effect(name, causal):
    features = CASES[name][0]
    query, key, value = arrays(2, 6, (2,))
    mask = np.array([[True] * 4 + [False] * 2, [False] * 6])
    key[~mask], value[~mask] = np.nan, np.inf
    run = jax.jit(lambda *a: kernelized_attention(*a, features, causal=causal, mask=mask)[0])
    out, pull = jax.vjp(run, query, key, value)
    clean = [np.where(np.isfinite(x), x, 0).astype(np.float64) for x in (query, key, value)]
    close(out, truth(*clean, name, causal, seen=mask[:, None, None]), 1e-5)
    assert not np.asarray(out[1]).any()
    assert all(np.isfinite(g).all() and not g[1].any() for g in pull(jnp.ones_like(out)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(["elu", "positive"], ["positive"]))
def test_segments_are_sequences_of_their_own(name):
    features = CASES[name][0]
    query, key, value = arrays(3, 9)
    key[:4] *= 8  # a stabilizer that went on to the next segment would underflow it
    ids = np.array([0] * 4 + [2] * 3 + [3] * 2)
    run = jax.jit(lambda *a, ids=None: kernelized_attention(*a, features, causal=True, segment_ids=ids, chunk=4))
    out, state = run(query, key, value, ids=ids)
    for which in np.unique(ids):
        part, last = run(*(x[ids == which] for x in (query, key, value)))
        close(out[ids == which], part, 1e-5)
    close(state.sums, last.sums, 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(["elu", "positive"], ["positive"]))
def test_the_future_does_not_reach_the_past(name):
    features = CASES[name][0]
    query, key, value = arrays(4, 6)

    @jax.jit
    def run(*a):
        return kernelized_attention(*a, features, causal=True, chunk=3)[0]

    for jacobian in jax.jit(jax.jacobian(run, (0, 1, 2)))(query, key, value):
        size = np.abs(jacobian).max((1, 2, 4, 5))
        assert not np.triu(size, 1).any()
    graded = jax.jit(jax.grad(lambda *a: run(*a)[:3].sum(), (0, 1, 2)))
    want = np.asarray(run(query, key, value))
    for poisoned in (0, 1, 2):
        given = [x.copy() for x in (query, key, value)]
        given[poisoned][3, 0, 0] = np.nan
        got = np.asarray(run(*given))
        close(got[:3], want[:3], 1e-6)
        close(got[:, 1], want[:, 1], 1e-6)
        assert np.isnan(got[3, 0]).all()
        assert np.isnan(got[4:, 0]).all() == (poisoned > 0)
        assert all(np.isfinite(gradient).all() for gradient in graded(*given))


def test_the_stabilizer_runs():
    """Keys so long that their features differ by far more than float32 holds between early and late tokens."""
    features = CASES["positive"][0]
    query, key, value = arrays(5, 12)
    key = key * np.linspace(12, 1, 12, dtype=np.float32)[:, None, None]
    run = jax.jit(lambda *a: kernelized_attention(*a, features, causal=True, chunk=4)[0])
    for given in ((query, key, value), (query, key[::-1].copy(), value)):
        want = truth(*(x.astype(np.float64) for x in given), "positive", causal=True)
        close(run(*given), want, 1e-4)


def test_cross_attention_and_no_keys():
    query, key, value = arrays(6, 7)
    cross = jax.jit(lambda *a: kernelized_attention(*a, ELU())[0])
    close(cross(query[:3], key, value), truth(query[:3], key, value), 1e-5)
    run = jax.jit(lambda *a, state=None: kernelized_attention(*a, CASES["positive"][0], initial_state=state))
    out, state = run(query, key[:0], value[:0])
    assert not np.asarray(out).any()
    first = run(query, key[:4], value[:4], state=state)[1]
    both = run(query, key[4:], value[4:], state=first)[0]
    close(both, truth(query, key, value, "positive"), 1e-5)


def test_epsilon_and_dtypes():
    query, key, value = arrays(7, 33)
    got = jax.jit(lambda *a: kernelized_attention(*a, ELU(), epsilon=3.0)[0])(query, key, value)
    close(got, truth(query, key, value, epsilon=3.0), 1e-5)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    out, state = jax.jit(lambda *a: kernelized_attention(*a, ELU(), causal=True))(*half)
    assert (out.dtype, state.sums.dtype) == (jnp.bfloat16, jnp.float32)
    close(out.astype(jnp.float32), truth(*(np.asarray(x, np.float64) for x in half), causal=True), 1e-2)


def test_bad_input_is_named():
    query, key, value = arrays(8, 5)
    negative = Function(jnp.tanh)
    for message, call in {
        "may be negative .Function.*`normalize=False`": lambda: kernelized_attention(query, key, value, negative),
        "`features` must be a feature map.*`ELU": lambda: kernelized_attention(query, key, value, "elu"),
        "`causal` needs as many queries as keys; got 5 and 4": lambda: kernelized_attention(
            query, key[:4], value[:4], ELU(), causal=True
        ),
        "`segment_ids` need `causal=True`": lambda: kernelized_attention(
            query, key, value, ELU(), segment_ids=np.zeros(5, int)
        ),
        "`mask` must be an array of booleans": lambda: kernelized_attention(query, key, value, ELU(), mask=np.ones(5)),
        "`epsilon` must be a number of at least 0": lambda: kernelized_attention(
            query, key, value, ELU(), epsilon=-1.0
        ),
        "`key` must have shape .* with heads = 2": lambda: kernelized_attention(query, key[:, :1], value, ELU()),
        "`state` must have sums and top of shapes": lambda: kernelized_attention(
            query, key, value, ELU(), initial_state=kernel_state(ELU(), (), 2, 4, 2)
        ),
        "`state` must be float32.*got float16 and float16. Convert it": lambda: kernelized_attention(
            query, key, value, ELU(), initial_state=kernel_state(ELU(), (), 2, 3, 2, jnp.float16)
        ),
        "`positions` must be in .0, max_len. with max_len = 3": lambda: kernelized_attention(
            query, key, value, Cosine(3)
        ),
        "`max_len` must be a positive int": lambda: Cosine(0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    out = kernelized_attention(query, key, value, negative, normalize=False)[0]
    close(out, np.einsum("ihf,jhf,jhv->ihv", np.tanh(query), np.tanh(key), value), 1e-5)


def test_a_promise_that_was_broken_gives_zeros():
    """The floor of the normalizer: a row whose weights sum to nothing positive is 0, with no gradient through it."""
    broken = Function(lambda x: x, nonnegative=True)
    query, key, value = -jnp.ones((2, 1, 3)), jnp.ones((2, 1, 3)), jnp.ones((2, 1, 4))
    for causal in (False, True):

        def run(*arrays, causal=causal):
            out = kernelized_attention(*arrays, broken, causal=causal)[0]
            return out.sum(), out

        gradients, out = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(query, key, value)
        assert not np.asarray(out).any()
        assert not any(np.asarray(gradient).any() for gradient in gradients)


ROWS = jnp.ones((2, 5, 1, 4))
TOKEN = jnp.ones((2, 1, 4))
STATE = kernel_state(ELU(), (2,), 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), mask=masks.Causal()), "`mask` must be .*`causal=True`"),
        (
            lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), mask=[[True] * 5] * 2),
            "`mask` must be an array of bool",
        ),
        (lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), implementation="x"), "`implementation` must be None"),
        (lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), chunk=0), "`chunk` must be a positive int"),
        (lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), normalize="no"), "`normalize` must be True or False"),
        (lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), initial_state=(1, 2)), "`state` must be a KernelState"),
        (
            lambda: kernelized_attention(ROWS, ROWS, ROWS, ELU(), causal=True, segment_ids=jnp.zeros((3, 5), int)),
            r"`segment_ids` must be integers of shape \(5,\) or \(2, 5\)",
        ),
        (lambda: kernelized_step([1.0], TOKEN, TOKEN, ELU(), STATE), "`query` must be an array"),
        (lambda: kernelized_step(ROWS, TOKEN, TOKEN, ELU(), STATE), "`key` must have shape"),
        (lambda: kernelized_step(TOKEN, TOKEN, TOKEN, ELU(), STATE, position=0.5), "`position` must be an integer"),
        (
            lambda: kernelized_step(TOKEN, TOKEN, TOKEN, ELU(), STATE, position=np.arange(3)),
            "`position` must be an int",
        ),
        (lambda: kernel_state(ELU(), 2, 1, 4, 4), "`batch` must be a tuple of sizes"),
        (lambda: Function(3), "`function` must be a function"),
        (
            lambda: kernelized_attention(ROWS, ROWS, ROWS, Function(lambda x: x.sum(-1), nonnegative=True)),
            r"`function` must make \[..., features\] of \[..., dim\]",
        ),
        (
            lambda: kernelized_attention(ROWS, ROWS, ROWS, Learned(*[np.float32(one) for one in MAPS])),
            "`kernel` must have shape .* with heads = 1",
        ),
        (lambda: RandomFeatures([[1.0, 2.0]]), "`projection` must be an array"),
        (lambda: orthogonal_projection(0, 4, 4), "`key` must be one random key"),
    ],
)
def test_what_else_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_positions_may_be_a_list():
    def run(positions):
        return jax.jit(lambda x: kernelized_attention(x, x, x, Cosine(8), causal=True, positions=positions)[0])(ROWS)

    want, got = run(np.arange(1, 6)), run([1, 2, 3, 4, 5])
    np.testing.assert_array_equal(got, want)
