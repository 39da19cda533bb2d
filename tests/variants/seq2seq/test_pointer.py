"""The pointer-generator equals its mixture, written out in probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants.seq2seq import GenerationGate, pointer_log_probabilities, pointer_log_probability

IDS = np.array([0, 5, 5, 2, -1, 6, 0])  # 4 words of the vocabulary, ids 4 to 6 of the source, one padding
SIZE = 7


def truth(logits, gate, scores, ids=IDS, size=SIZE):
    """P by loops."""
    steps, vocabulary = logits.shape
    p = np.zeros((steps, size))
    for t in range(steps):
        p_gen = 1 / (1 + np.exp(-gate[t]))
        made = np.exp(logits[t]) / np.exp(logits[t]).sum()
        kept = ids >= 0
        attended = np.where(kept, np.exp(scores[t]), 0)
        attended = attended / attended.sum() if kept.any() else attended
        for word in range(vocabulary):
            p[t, word] += p_gen * made[word]
        for i, word in enumerate(ids):
            if word >= 0:
                p[t, word] += (1 - p_gen) * attended[i]
    return p


def arrays(seed=0):
    return normal(seed, (3, 4), (3,), (3, 7))


def test_probabilities():
    check(lambda *a: jnp.exp(pointer_log_probabilities(*a, IDS, SIZE)), truth, *arrays())


def test_log_probabilities_of_words_that_can_come():
    possible = [0, 1, 2, 3, 5, 6]
    check(
        lambda *a: pointer_log_probabilities(*a, IDS, SIZE)[:, possible],
        lambda *a: np.log(truth(*a)[:, possible]),
        *arrays(),
    )


def test_a_word_that_cannot_come():
    graded = jax.value_and_grad(lambda *a: pointer_log_probabilities(*a, IDS, SIZE)[0, 4], (0, 1, 2))
    log_p, gradients = jax.jit(graded)(*arrays())
    assert log_p == -np.inf
    assert all(np.all(gradient == 0) for gradient in gradients)


@pytest.mark.parametrize("targets", [[0, 5, 3], pytest.param([2, 6, 1], marks=pytest.mark.exhaustive)])
def test_of_targets(targets):
    targets = np.array(targets)
    check(
        lambda *a: pointer_log_probability(*a, IDS, targets),
        lambda *a: np.log(truth(*a)[np.arange(3), targets]),
        *arrays(),
    )


def test_of_targets_is_an_entry_of_all():
    logits, gate, scores = (np.stack([a, -a]) for a in arrays(1))
    ids = np.stack([IDS, IDS[::-1]])
    every = jax.jit(pointer_log_probabilities, static_argnums=4)(logits, gate, scores, ids, SIZE)
    run = jax.jit(lambda words: pointer_log_probability(logits, gate, scores, ids, words))
    for word in range(SIZE):
        one = run(np.full((2, 3), word))
        np.testing.assert_allclose(one, every[..., word], rtol=1e-6)
    np.testing.assert_allclose(np.exp(every).sum(-1), 1, rtol=1e-6)
    assert np.all(run(np.full((2, 3), -1)) == -np.inf)


def test_a_sure_gate_is_the_plain_vocabulary_or_the_plain_attention():
    logits, _, scores = arrays()
    run = jax.jit(lambda gate: pointer_log_probabilities(logits, gate, scores, IDS, SIZE))
    made = run(np.full(3, np.inf, np.float32))
    np.testing.assert_allclose(made[:, :4], jax.nn.log_softmax(logits), rtol=1e-6)
    assert np.all(made[:, 4:] == -np.inf)
    copied = np.exp(run(np.full(3, -np.inf, np.float32)))
    attended = jax.nn.softmax(np.where(IDS >= 0, scores, -np.inf))
    np.testing.assert_allclose(copied[:, 5], attended[:, 1] + attended[:, 2], rtol=1e-6)
    assert np.all(copied[:, 1] == 0)


def test_nothing_underflows():
    """A copied word whose weight is exp(-300), by a gate of exp(-200)."""
    logits, gate, scores = jnp.zeros((1, 2)), jnp.full(1, 200.0), jnp.array([[0.0, -300.0]])
    every = jax.jit(lambda *a: pointer_log_probabilities(*a, np.array([0, 2]), 3))(logits, gate, scores)
    np.testing.assert_allclose(every[0, 2], -500, rtol=1e-6)
    one = lambda *a: pointer_log_probability(*a, np.array([0, 2]), np.array([2]))[0]  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(one, (1, 2)))(logits, gate, scores)
    np.testing.assert_allclose(value, -500, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [-1], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], [[-1, 1]], rtol=1e-6)


def test_all_padding_leaves_the_generator():
    logits, gate, scores = arrays()
    ids = np.full(7, -1)
    p = jnp.exp(pointer_log_probabilities(logits, gate, scores, ids, SIZE))
    close(p, truth(logits, gate, scores, ids), 1e-6)
    gradients = jax.grad(lambda *a: pointer_log_probability(*a, ids, np.zeros(3, int)).sum(), (0, 1, 2))(
        logits, gate, scores
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.all(gradients[2] == 0)


def test_nan_in_padding_stays_there():
    logits, gate, scores = arrays()
    scores[:, 4] = np.nan
    value, gradient = jax.value_and_grad(
        lambda s: pointer_log_probabilities(logits, gate, s, IDS, SIZE)[:, [0, 5]].sum()
    )(scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.all(gradient[:, 4] == 0)


def test_an_id_beyond_counts_as_padding_where_it_is_not_known():
    logits, gate, scores = arrays()
    want = pointer_log_probabilities(logits, gate, scores, IDS, SIZE)
    beyond = np.where(IDS < 0, 99, IDS)
    got = jax.jit(pointer_log_probabilities, static_argnums=4)(logits, gate, scores, beyond, SIZE)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`source_ids` must be below `extended_size` = 7; got 99"):
        pointer_log_probabilities(logits, gate, scores, beyond, SIZE)


def test_the_gate_is_its_equation():
    def ours(context, state, inputs, *parameters):
        names = dict(zip(("context", "state", "input", "bias"), parameters, strict=True))
        return GenerationGate(3, 2, 4)(names, context, state, inputs)

    def definition(context, state, inputs, w_h, w_s, w_x, b):
        return np.array([context[i] @ w_h + state[i] @ w_s + inputs[i] @ w_x + b for i in range(len(state))])

    given = normal(4, (5, 3), (5, 2), (5, 4), (3,), (2,), (4,), ())
    check(ours, definition, *(np.asarray(array, np.float32) for array in given))
    check_layer(GenerationGate(3, 2, 4), *map(jnp.asarray, given[:3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(source_ids=IDS[:5]), r"`source_ids` must have shape \[..., kv_len\] with kv_len = 7; got \(5,\)"),
        (dict(source_ids=IDS.astype(np.float32)), "`source_ids` must be integers; got float32"),
        (dict(source_ids=np.stack([IDS, IDS])), r"`source_ids` must have the batch axes \(\)"),
        (dict(extended_size=3), "`extended_size` must be at least the vocabulary of `vocabulary_logits`, 4; got 3"),
        (dict(generation_logit=np.zeros(2, np.float32)), "`generation_logit` must have shape .* with steps = 3"),
    ],
)
def test_errors(change, message):
    logits, gate, scores = arrays()
    given = dict(vocabulary_logits=logits, generation_logit=gate, attention_scores=scores)
    given |= dict(source_ids=IDS, extended_size=SIZE) | change
    with pytest.raises(ValueError, match=message):
        pointer_log_probabilities(**given)


def test_targets_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"`targets` must have shape .* with steps = 3"):
        pointer_log_probability(*arrays(), IDS, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"`targets` must have shape"):
        pointer_log_probability(*arrays(), IDS, np.zeros((2, 3), int))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", rows(["int8", "uint8", "int16", "uint32"], ["int8"]))
def test_ids_of_any_dtype(dtype):
    """Those beyond the extended vocabulary, unknown under `jit`, count as padding; -1 must not become 255."""
    scores, ids = jnp.zeros((1, 4)), jnp.asarray([0, 5, 100, 5], dtype)
    run = jax.jit(lambda ids: pointer_log_probabilities(jnp.zeros((1, 4)), jnp.zeros(1), scores, ids, 9))
    np.testing.assert_allclose(jnp.exp(run(ids)).sum(), 1, rtol=1e-6)
    assert pointer_log_probabilities(jnp.zeros((1, 4)), jnp.zeros(1), scores, ids, 70000).shape == (1, 70000)
