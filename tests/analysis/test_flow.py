"""Rollout, flow, relevance, contributions and importance: against definitions in NumPy, and with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import analysis

RANDOM = np.random.default_rng(0)
BATCH, HEADS, LENGTH, DIM, FEATURES = 2, 4, 5, 3, 6


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


LAYERS = [softmax(2 * RANDOM.normal(size=(BATCH, HEADS, LENGTH, LENGTH))) for _ in range(3)]
SLOPES = [RANDOM.normal(size=one.shape).astype(np.float32) for one in LAYERS]
VALUES = RANDOM.normal(size=(BATCH, LENGTH, HEADS // 2, DIM)).astype(np.float32)
OUTPUT = RANDOM.normal(size=(HEADS, DIM, FEATURES)).astype(np.float32)


def mixed(weights):
    joined = weights.mean(0) + np.eye(LENGTH)
    return joined / joined.sum(-1, keepdims=True)


def test_rollout_is_the_product_of_the_layers():
    found = analysis.rollout(LAYERS)
    for example in range(BATCH):
        want = np.eye(LENGTH)
        for layer in LAYERS:
            want = mixed(layer[example]) @ want
        np.testing.assert_allclose(found[example], want, rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(analysis.rollout(analysis.read(LAYERS)), found, rtol=1e-6)
    np.testing.assert_allclose(analysis.rollout(LAYERS[:1], heads="max"), analysis.with_residual(LAYERS[0], "max"))


def test_flow_is_bounded_by_every_cut():
    """By the minimum over all cuts between the layers, which for this size can be enumerated."""
    layers = [one[:1, :, :3, :3] / one[:1, :, :3, :3].sum(-1, keepdims=True) for one in LAYERS[:2]]
    first, second = (np.asarray(analysis.with_residual(one))[0] for one in layers)
    found = analysis.attention_flow(layers)
    assert found.shape == (1, 3, 3)
    for output in range(3):
        for source in range(3):
            # Of each node between, either its edge from below or its edge to above is cut.
            want = sum(min(first[node, source], second[output, node]) for node in range(3))
            assert np.isclose(found[0, output, source], want, atol=1e-5)
    np.testing.assert_array_equal(analysis.attention_flow(layers, outputs=[2, -3]), found[:, [2, 0]])


def test_gradient_attention_is_its_rule():
    found = analysis.gradient_attention(LAYERS, SLOPES)
    np.testing.assert_array_equal(analysis.gradient_attention(np.stack(LAYERS), np.stack(SLOPES)), found)
    for example in range(BATCH):
        want = np.eye(LENGTH)
        for weights, slopes in zip(LAYERS, SLOPES, strict=True):
            want = want + np.maximum(weights[example] * slopes[example], 0).mean(0) @ want
        np.testing.assert_allclose(found[example], want, rtol=1e-5, atol=1e-6)


def test_gradient_attention_of_a_recording_finds_what_the_loss_reads():
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, 2, 4))
    loss = jattn.recorded(lambda x: jattn.attention(x, x, x)[0, 1].sum(), gradients=True)
    _, seen = loss(x)
    relevance = analysis.gradient_attention(analysis.read(seen))[0] - np.eye(LENGTH)
    assert (relevance[1] > 0).any() and (np.delete(relevance, 1, 0) == 0).all()
    with pytest.raises(ValueError, match="`gradients` must be given"):
        analysis.gradient_attention(analysis.read(LAYERS))


def test_relevance_through_cross_attention():
    cross = softmax(RANDOM.normal(size=(2, 3, LENGTH)))
    slope = RANDOM.normal(size=cross.shape).astype(np.float32)
    decoder = np.eye(3) + RANDOM.random((3, 3))
    encoder = np.eye(LENGTH)  # an encoder that no layer has mixed
    rest = decoder - np.eye(3)
    bar = rest / rest.sum(-1, keepdims=True) + np.eye(3)
    want = bar.T @ np.maximum(cross * slope, 0).mean(0) @ encoder
    found = analysis.cross_gradient_attention(cross, slope, decoder, encoder)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def moved(example):
    """f_hj by head and key."""
    return np.stack([VALUES[example, :, head // 2] @ OUTPUT[head] for head in range(HEADS)])


def test_norms_are_those_of_what_is_moved():
    alone, joined = analysis.norms(LAYERS[0], VALUES, OUTPUT), analysis.norms(LAYERS[0], VALUES, OUTPUT, joined=True)
    for example in range(BATCH):
        each = LAYERS[0][example][..., None] * moved(example)[:, None]
        np.testing.assert_allclose(alone[example], np.linalg.norm(each, axis=-1), rtol=1e-4)
        np.testing.assert_allclose(joined[example], np.linalg.norm(each.sum(0), axis=-1), rtol=1e-4)


def test_value_zeroing_is_a_layer_without_each_value():
    def finish(attended):
        hidden = attended + 1
        return jnp.tanh(hidden) if isinstance(attended, jax.Array) else np.tanh(hidden)

    found = jax.jit(lambda a, v, o: analysis.value_zeroing(a, v, o, finish))(LAYERS[0], VALUES, OUTPUT)
    for example in range(BATCH):
        weights, f = LAYERS[0][example], moved(example)
        whole = finish(np.einsum("hqk,hkf->qf", weights, f))
        want = np.zeros((LENGTH, LENGTH))
        for j in range(LENGTH):
            less = f.copy()
            less[:, j] = 0
            after = finish(np.einsum("hqk,hkf->qf", weights, less))
            for i in range(LENGTH):
                want[i, j] = 1 - whole[i] @ after[i] / np.linalg.norm(whole[i]) / np.linalg.norm(after[i])
        np.testing.assert_allclose(found[example], want / want.sum(-1, keepdims=True), atol=1e-4)


def test_effective_attention_does_the_same_with_the_least_weights():
    for output in (None, OUTPUT):
        found = np.asarray(analysis.effective_attention(LAYERS[0], VALUES, output))
        for example in range(BATCH):
            for head in range(HEADS):
                f = VALUES[example, :, head // 2] if output is None else moved(example)[head]
                weights = LAYERS[0][example, head]
                np.testing.assert_allclose(found[example, head] @ f, weights @ f, atol=1e-5)
                want = weights @ f @ np.linalg.pinv(f, rcond=1e-4)  # the least squares of all weights that do the same
                np.testing.assert_allclose(found[example, head], want, atol=1e-4)
    assert np.abs(found - LAYERS[0]).max() > 0.05  # more keys than features: weights are not determined


def test_importance_is_the_gradient_of_a_gate():
    """The gradient with respect to gates that a model has, from a recording of a model that has none."""
    x = jax.random.normal(jax.random.key(0), (3, LENGTH, HEADS, 4))
    target = jax.random.normal(jax.random.key(1), x.shape)

    def loss(x, gates):
        out = jattn.attention(x, x, x, mask=jattn.masks.Causal())
        return ((jnp.tanh(out * gates[:, None, :, None]) - target) ** 2).sum()

    @jax.jit
    def both(x):
        ones = jnp.ones((3, HEADS))
        _, seen = jattn.recorded(lambda x: loss(x, ones), gradients=True)(x)
        found = analysis.gate_gradients(seen["attention.0"], seen.gradients["attention.0"])
        mean = analysis.head_importance(seen["attention.0"], seen.gradients["attention.0"])
        return found, mean, jax.grad(loss, argnums=1)(x, ones)

    found, mean, want = both(x)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, np.abs(want).mean(0), rtol=1e-4, atol=1e-4)


def test_heads_are_closed_in_their_order():
    size = {"a": np.array([5.0, 1.0]), "b": np.array([0.3, 0.4])}
    assert analysis.rank_heads(size, normalize=False) == [("b", 0), ("b", 1), ("a", 1), ("a", 0)]
    order = analysis.rank_heads(size)
    assert order == [("a", 1), ("b", 0), ("b", 1), ("a", 0)]
    curve = list(analysis.pruned(lambda gates: sum((gates[name] * size[name]).sum() for name in gates), order))
    assert [head for head, _ in curve] == [None, *order]
    np.testing.assert_allclose([value for _, value in curve], [6.7, 5.7, 5.4, 5.0, 0.0], atol=1e-6)
    kernel = analysis.gate_outputs(OUTPUT, np.array([1.0, 0.0, 0.5, 1.0]))
    np.testing.assert_allclose(kernel, OUTPUT * np.array([1, 0, 0.5, 1])[:, None, None])


def test_hard_concrete_gates_have_their_distribution():
    log_alpha = jnp.array([-2.0, 0.0, 1.5])
    drawn = jax.vmap(lambda key: analysis.hard_concrete(key, log_alpha))(jax.random.split(jax.random.key(0), 20000))
    assert drawn.min() == 0 and drawn.max() == 1
    np.testing.assert_allclose((drawn > 0).mean(0), analysis.open_probability(log_alpha), atol=0.01)
    u = np.random.default_rng(0).random((200000, 1))
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + np.asarray(log_alpha)) / 0.33))
    np.testing.assert_allclose(drawn.mean(0), np.clip(s * 1.2 - 0.1, 0, 1).mean(0), atol=0.01)
    slopes = jax.grad(lambda one: analysis.hard_concrete(jax.random.key(1), one).sum())(jnp.zeros(50))
    assert (slopes >= 0).all() and (slopes > 0).any()
    np.testing.assert_allclose(analysis.settled_gates([-5.0, 0.0, 5.0]), [0, 0.5, 1], atol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: analysis.rollout([]), "at least one layer"),
        (lambda: analysis.rollout([LAYERS[0], LAYERS[0][..., :4, :4]]), "the same tokens.*as layer 1"),
        (lambda: analysis.rollout([LAYERS[0][..., :4]]), "self-attention"),
        (lambda: analysis.rollout(LAYERS, heads="sum"), "`heads` must be one of 'mean', 'max', 'min'"),
        (lambda: analysis.attention_flow(LAYERS, outputs=[5]), "`outputs` must be indices of 5 tokens"),
        (lambda: analysis.gradient_attention(LAYERS, SLOPES[:2]), "each of 3 layers; got 2"),
        (lambda: analysis.gradient_attention(LAYERS[0], SLOPES[0]), "`layers` must be several arrays"),
        (lambda: analysis.gradient_attention(LAYERS, SLOPES[0]), "`gradients` must be several arrays"),
        (lambda: analysis.gradient_attention(LAYERS[:1], [SLOPES[0][:1]]), "`gradients` must have the shape"),
        (lambda: analysis.norms(LAYERS[0], VALUES[:1], OUTPUT), r"`values` must have shape \[2, 5, 4, head_dim\]"),
        (lambda: analysis.norms(LAYERS[0], VALUES, OUTPUT[:2]), r"`output` must have shape \[4, 3, features\]"),
        (lambda: analysis.value_zeroing(LAYERS[0], VALUES, OUTPUT, jnp.sum), "`finish` must return"),
        (lambda: analysis.head_importance(LAYERS[0], SLOPES[0][:1]), "`gradients` must have the shape"),
        (lambda: analysis.rank_heads({"a": [np.nan]}), r"`importance\['a'\]` must be finite"),
        (lambda: list(analysis.pruned(len, [("a", 1)])), "every head of every layer once"),
        (lambda: analysis.gate_outputs(OUTPUT, np.ones(3)), r"`gates` \[heads\]"),
        (lambda: analysis.hard_concrete(3, np.zeros(2)), "`key` must be one random key"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
