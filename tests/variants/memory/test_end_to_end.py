"""Memory networks equal their equations, with both kinds of tying."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants.memory import MemoryNetwork, memory_hops, position_encoding

STORY = np.array([[3, 1, 4, 0], [2, 0, 0, 0], [5, 2, 1, 1], [0, 0, 0, 0]])
QUESTION = np.array([4, 3, 0])


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def encode(embedding, words, encoding):
    words = [word for word in words if word]
    out, d = np.zeros(embedding.shape[1]), embedding.shape[1]
    for j, word in enumerate(words, 1):
        k = np.arange(1, d + 1)
        share = (1 - j / len(words)) - k / d * (1 - 2 * j / len(words))
        out = out + embedding[word] * (share if encoding == "position" else 1)
    return out


def truth(parameters, hops, tying, encoding):
    real = [sentence for sentence in STORY if sentence.any()]

    def told(n):
        ages = range(len(real) - 1, -1, -1)
        return np.stack(
            [
                encode(parameters["embedding"][n], s, encoding) + parameters["age"][n][age]
                for s, age in zip(real, ages, strict=True)
            ]
        )

    if tying == "adjacent":
        u = encode(parameters["embedding"]["0"], QUESTION, encoding)
        for hop in range(hops):
            u = u + softmax(told(str(hop)) @ u) @ told(str(hop + 1))
        return parameters["embedding"][str(hops)] @ u
    u = encode(parameters["question"]["embedding"], QUESTION, encoding)
    for _ in range(hops):
        u = u @ parameters["between"]["kernel"] + softmax(told("0") @ u) @ told("1")
    return u @ parameters["answer"]["kernel"]


@pytest.mark.parametrize("tying", rows(["adjacent", "layerwise"], ["adjacent"]))
@pytest.mark.parametrize("encoding", ["position", pytest.param("bag", marks=pytest.mark.exhaustive)])
def test_network_is_its_definition(tying, encoding):
    layer = MemoryNetwork(words=6, features=3, hops=2, sentences=5, tying=tying, encoding=encoding)
    first = layer.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(first)
    arrays = normal(0, *(leaf.shape for leaf in leaves), spread=0.5)

    def ours(*leaves):
        return layer(jax.tree.unflatten(tree, leaves), STORY, QUESTION)

    def expected(*leaves):
        return truth(jax.tree.unflatten(tree, leaves), 2, tying, encoding)

    check(ours, expected, *arrays)


def test_hops_stream_over_facts_of_each_example():
    question, keys, values, between = normal(1, (2, 3), (2, 5, 3), (2, 5, 3), (3, 3))
    real = np.array([[True] * 5, [True, False, True, False, False]])

    def expected(question, keys, values, between):
        out = question.copy()
        for b in range(2):
            for _ in range(3):
                weights = softmax(np.where(real[b], keys[b] @ out[b], -np.inf))
                out[b] = out[b] @ between + weights @ values[b]
        return out

    def ours(question, keys, values, between):
        return memory_hops(question, [keys] * 3, [values] * 3, between=between, real=real)

    close(ours(question, keys, values, between), expected(question, keys, values, between), 1e-5)
    keys[1, 1], values[1, 3] = np.nan, np.inf
    assert np.isfinite(ours(question, keys, values, between)).all()


def test_nothing_told_reads_nothing():
    layer = MemoryNetwork(words=6, features=3)
    parameters = layer.init(jax.random.key(0))
    out = jax.jit(layer.__call__)(parameters, np.zeros((4, 3), int), QUESTION)
    u = encode(np.asarray(parameters["embedding"]["0"]), QUESTION, "position")
    close(out, np.asarray(parameters["embedding"]["3"]) @ u, 1e-5)


def test_order_of_words_counts_with_position_encoding_alone():
    for encoding, differs in (("position", True), ("bag", False)):
        layer = MemoryNetwork(words=6, features=3, encoding=encoding)
        parameters = layer.init(jax.random.key(0))
        turned = STORY.copy()
        turned[0, :3] = turned[0, 2::-1]
        run = jax.jit(layer.__call__)
        apart = np.abs(run(parameters, STORY, QUESTION) - run(parameters, turned, QUESTION)).max()
        assert (apart > 1e-5) == differs


def test_padding_sentences_and_words_change_nothing():
    layer = MemoryNetwork(words=6, features=3)
    parameters = layer.init(jax.random.key(0))
    padded = np.pad(STORY, ((0, 3), (0, 2)))
    run = jax.jit(layer.__call__)
    close(run(parameters, padded, np.pad(QUESTION, (0, 2))), run(parameters, STORY, QUESTION), 1e-6)
    assert position_encoding(np.array([True, True, False]), 4).shape == (3, 4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("tying", [pytest.param("adjacent", marks=pytest.mark.exhaustive), "layerwise"])
def test_as_a_module(tying):
    layer = MemoryNetwork(words=6, features=3, sentences=5, tying=tying)
    stories = jnp.asarray(np.stack([STORY, STORY[::-1]]))
    check_layer(layer, stories, jnp.asarray(np.stack([QUESTION, QUESTION[::-1]])))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`keys` must be a list of arrays, one for each hop"):
        memory_hops(jnp.ones(3), jnp.ones((1, 3, 3)), jnp.ones((1, 3, 3)))
    with pytest.raises(ValueError, match=r"`standard_deviation` must be a number of at least 0, and finite; got -1"):
        MemoryNetwork(words=6, features=3, standard_deviation=-1)
    with pytest.raises(ValueError, match="`tying` must be one of 'adjacent', 'layerwise'; got 'none'"):
        MemoryNetwork(words=6, features=3, tying="none")
    with pytest.raises(ValueError, match="`encoding` must be one of 'position', 'bag'"):
        MemoryNetwork(words=6, features=3, encoding="order")
    with pytest.raises(ValueError, match="`hops` must be a positive int; got 0"):
        MemoryNetwork(words=6, features=3, hops=0)
    layer = MemoryNetwork(words=6, features=3, sentences=3)
    with pytest.raises(ValueError, match="`story` must have at most 3 sentences; got 4"):
        layer({}, STORY, QUESTION)
    with pytest.raises(ValueError, match="`question` must be integers"):
        layer({}, STORY, QUESTION.astype(float))
    for wrong, message in ((6, "from 0 to 5; got 0 to 6"), (-1, "from 0 to 5; got -1 to 4")):
        asked = np.array([4, 0, wrong])
        with pytest.raises(ValueError, match=f"`question` must hold word ids {message}"):
            layer({}, STORY[:3], asked)
    with pytest.raises(ValueError, match=r"`between` must have shape \[features, features\] with features = 3"):
        memory_hops(jnp.ones(3), [jnp.ones((2, 3))], [jnp.ones((2, 3))], between=jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="one array for each hop; got 1 and 2"):
        memory_hops(jnp.ones(3), [jnp.ones((2, 3))], [jnp.ones((2, 3))] * 2)
    with pytest.raises(ValueError, match=r"`keys\[0\]` must have shape"):
        memory_hops(jnp.ones(3), [jnp.ones((2, 4))], [jnp.ones((2, 3))])
