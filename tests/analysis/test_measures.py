"""Measures, distances and patterns: against loops written apart, and on maps whose answers are known."""

import attention_loops as loops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import analysis

BATCH, HEADS, LENGTH = 2, 3, 7
RANDOM = np.random.default_rng(0)
WEIGHTS = (
    RANDOM.random((BATCH, HEADS, LENGTH, LENGTH)) ** 4 * (RANDOM.random((BATCH, HEADS, 1, LENGTH)) > 0.2)
).astype(np.float32)
WEIGHTS[0, 1, 3] = 0  # a query that attends to nothing
VALID = np.arange(LENGTH) < np.array([[7], [5]])
WHERE = (VALID[:, None] & VALID[:, :, None])[:, None]
KINDS = RANDOM.random((BATCH, LENGTH)) > 0.5
TOKENS = RANDOM.integers(0, 3, (BATCH, LENGTH))
MEASURES = {
    "entropy": (analysis.entropy, loops.entropy),
    "confidence": (analysis.confidence, loops.confidence),
    "mean_distance": (analysis.mean_distance, loops.mean_distance),
    "sink_score": (analysis.sink_score, loops.sink_score),
    "mass_on": (lambda a, w: analysis.mass_on(a, KINDS, w), lambda a, w: loops.mass_on(a, w, KINDS)),
    "offset_histogram": (
        lambda a, w: analysis.offset_histogram(a, w)[1],
        lambda a, w: loops.offset_histogram(a, w, LENGTH),
    ),
}


@pytest.fixture(scope="module")
def measured():
    """All measures by one program, with and without padding."""
    every = np.ones((1, 1, 1, 1), bool)
    run = jax.jit(lambda a, w: {name: ours(a, w) for name, (ours, _) in MEASURES.items()})
    return {"padded": run(WEIGHTS, WHERE), "all": run(WEIGHTS, every)}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("padding", ["padded", "all"])
def test_measures_are_their_definitions(measured, name, padding):
    counted = VALID if padding == "padded" else np.ones_like(VALID)
    want = [MEASURES[name][1](WEIGHTS[:, head], counted) for head in range(HEADS)]
    np.testing.assert_allclose(measured[padding][name], want, rtol=1e-5, atol=1e-6)


def test_measures_of_one_example_in_bfloat16_and_per_query():
    one = jnp.asarray(WEIGHTS[0], jnp.bfloat16)
    np.testing.assert_allclose(analysis.entropy(one), analysis.entropy(WEIGHTS[:1]), atol=0.02)
    per_query = analysis.entropy(WEIGHTS, WHERE, per_query=True)
    assert per_query.shape == (BATCH, HEADS, LENGTH)
    counts = np.broadcast_to(WHERE.any(-1), per_query.shape) & ((WEIGHTS * WHERE).sum(-1) > 0)
    np.testing.assert_allclose(per_query.sum((0, 2)) / counts.sum((0, 2)), analysis.entropy(WEIGHTS, WHERE), rtol=1e-5)
    assert (analysis.entropy(np.zeros((2, 3, 3))) == 0).all()


def test_measures_of_chosen_queries():
    """The last queries of a causal model, as a cache has them, are measured where they are."""
    last = WEIGHTS[..., -2:, :]
    queries = np.arange(LENGTH - 2, LENGTH)
    rest = np.zeros_like(WEIGHTS)
    rest[..., -2:, :] = last
    np.testing.assert_allclose(analysis.mean_distance(last, queries=queries), analysis.mean_distance(rest), rtol=1e-6)
    offsets, shares = analysis.offset_histogram(last, queries=queries)
    assert offsets.tolist() == list(range(-LENGTH + 1, 2))
    np.testing.assert_allclose(shares, analysis.offset_histogram(rest)[1][:, : LENGTH + 1], atol=1e-6)
    with pytest.raises(ValueError, match="`queries` must be the positions of the 2 queries among the 7 keys"):
        analysis.mean_distance(last)


def test_sink_rate_is_the_share_of_heads_above_the_threshold():
    scores = {"a": np.array([0.31, 0.29]), "b": np.array([0.9, 0.0])}
    assert analysis.sink_rate(scores) == 0.5
    assert analysis.sink_rate(np.array([0.31, 0.29]), threshold=0.4) == 0


def test_distances_of_heads_of_several_layers():
    layers = [WEIGHTS, WEIGHTS[:, ::-1] ** 2]
    found = analysis.distances(analysis.read(layers, valid=VALID))
    heads = [layer[:, head] for layer in layers for head in range(HEADS)]
    # Where a query of one head attends to nothing, it is left out of both.
    zero = np.stack([(head * WHERE[:, 0]).sum(-1) == 0 for head in heads])
    for one in (0, 2, 4):
        for other in (1, 3, 5):
            left, right = heads[one].copy(), heads[other].copy()
            left[zero[other]] = 0
            right[zero[one]] = 0
            want = loops.head_distance(left, right, VALID)
            np.testing.assert_allclose(found[one, other], want, atol=2e-3)
    np.testing.assert_array_equal(found, found.T)
    assert np.abs(np.diag(found)).max() < 2e-3
    opposite = np.stack([np.eye(4), np.eye(4)[::-1]])
    np.testing.assert_allclose(
        analysis.head_distances(opposite, opposite), np.sqrt(np.log(2)) * (1 - np.eye(2)), atol=1e-6
    )
    with pytest.raises(ValueError, match="same examples, queries and keys"):
        analysis.distances(analysis.read([WEIGHTS, WEIGHTS[:1]]))


def test_an_embedding_keeps_distances():
    points = RANDOM.normal(size=(6, 2))
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    found = analysis.embedding(apart)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), apart, atol=1e-6)
    assert analysis.embedding(apart[:1, :1], 2).shape == (1, 2)
    with pytest.raises(ValueError, match="symmetric"):
        analysis.embedding(np.arange(4.0).reshape(2, 2))


def test_patterns_are_their_definitions():
    names = analysis.PATTERNS

    @jax.jit
    def shares(weights):
        pairs = {name: analysis.pattern(name, TOKENS, delimiters=KINDS) for name in names}
        return {name: analysis.pattern_share(weights, pairs[name]) for name in names}, pairs

    found, pairs = shares(WEIGHTS)
    for name in names:
        want = [
            [[loops.is_pair(name, i, j, words, ends) for j in range(LENGTH)] for i in range(LENGTH)]
            for words, ends in zip(TOKENS, KINDS, strict=True)
        ]
        np.testing.assert_array_equal(pairs[name], want, err_msg=name)
        want = [loops.pattern_share(name, WEIGHTS[:, head], TOKENS, KINDS) for head in range(HEADS)]
        np.testing.assert_allclose(found[name], want, rtol=1e-5, err_msg=name)


def test_patterns_of_chosen_queries():
    for name in analysis.PATTERNS:
        whole = analysis.pattern(name, TOKENS, delimiters=KINDS)
        some = analysis.pattern(name, TOKENS, delimiters=KINDS, queries=[5, 2])
        np.testing.assert_array_equal(some, whole[:, [5, 2]], err_msg=name)


def test_an_even_head_has_the_share_of_chance():
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    even = (causal / causal.sum(-1, keepdims=True))[None].astype(np.float32)
    for name in ("previous", "current", "first"):
        pairs = analysis.pattern(name, TOKENS[0])
        np.testing.assert_allclose(analysis.pattern_share(even, pairs), analysis.chance(pairs, causal[None]), rtol=1e-6)
    may = analysis.has_choice(analysis.pattern("first", TOKENS[0]), causal[None])
    assert may[0, :, 0].tolist() == [False] + [True] * 6


def test_prefix_matching_of_a_head_made_by_hand():
    tokens = analysis.repeated_tokens(jax.random.key(0), 2, 5, 50, times=3)
    assert (tokens[:, :5] == tokens[:, 5:10]).all() and (tokens[:, :5] == tokens[:, 10:]).all()
    assert all(len(set(row[:5].tolist())) == 5 for row in tokens)
    by_hand = np.zeros((2, 2, 15, 15), np.float32)
    by_hand[:, :, :5, 0] = 1
    for i in range(5, 15):
        by_hand[:, 0, i, i - 4] = 1
        by_hand[:, 1, i, i - 5] = 0.7
        by_hand[:, 1, i, i - 4] = 0.3
    np.testing.assert_allclose(analysis.prefix_matching(by_hand, tokens), [1, 0.3], rtol=1e-6)


def test_copying_is_that_of_the_whole_matrix():
    vocabulary, features, heads, dim = 9, 6, 4, 3
    e, v = RANDOM.normal(size=(vocabulary, features)), RANDOM.normal(size=(features, heads // 2, dim))
    o, u = RANDOM.normal(size=(heads, dim, features)), RANDOM.normal(size=(features, vocabulary))
    want = []
    for head in range(heads):
        values = np.linalg.eigvals(e @ v[:, head // 2] @ o[head] @ u)
        want.append(values.real.sum() / np.abs(values).sum())
    np.testing.assert_allclose(analysis.copying(e, v, o, u), want, atol=1e-6)


def test_kinds_of_tokens():
    tokens = [
        "[CLS]",
        "<s>",
        "<|endoftext|>",
        "</s>",
        "[SEP]",
        "Ġthe",
        "▁cat",
        "##s",
        ".",
        "Ġ,",
        "12",
        "Ċ",
        "▁",
        "猫",
        "#",
        "ᠮ",
    ]
    kinds = analysis.token_kinds(tokens)
    assert {kind: np.flatnonzero(which).tolist() for kind, which in kinds.items()} == {
        "special": [0, 1, 2, 3, 4],
        "word": [5, 6, 7, 13, 15],
        "punctuation": [8, 9, 14],
        "number": [10],
        "space": [11, 12],
    }
    assert (np.sum(list(kinds.values()), 0) == 1).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: analysis.entropy([[[1.0]]]), r"`weights` must be a floating-point array.*jattn.analysis.read"),
        (lambda: analysis.entropy(np.zeros((3, 3))), r"\[\.\.\., heads, queries, keys\]"),
        (lambda: analysis.entropy(WEIGHTS, VALID), "`where` must be booleans that broadcast"),
        (lambda: analysis.entropy(WEIGHTS, WHERE * 1.0), "`where` must be booleans"),
        (lambda: analysis.sink_score(WEIGHTS, key=7), "one of 7 keys; got 7"),
        (lambda: analysis.mass_on(WEIGHTS, KINDS[:, :5]), r"`keys` must be booleans \[\.\.\., 7\]"),
        (lambda: analysis.mean_distance(WEIGHTS, queries=[1]), "`queries` must be 7 positions"),
        (lambda: analysis.pattern("left", TOKENS), "`name` must be one of 'previous'"),
        (lambda: analysis.pattern("previous", ["a"]), "`tokens` must be integers"),
        (lambda: analysis.pattern("delimiter", TOKENS), "`delimiters` must be booleans"),
        (lambda: analysis.pattern_share(WEIGHTS, np.ones((3, 7, 7), bool)), r"`pairs` must be booleans \[2, 7, 7\]"),
        (lambda: analysis.repeated_tokens(jax.random.key(0), 1, 5, 4), "`length` must be at most `vocabulary`"),
        (lambda: analysis.copying(*[np.ones((2, 2))] * 4), "must have shapes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_recording_is_measured_within_jit():
    """The measures of a recording are computed where it is made, so that its maps never leave the device."""
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
    run = jattn.recorded(lambda x: jattn.attention(x, x, x, mask=jattn.masks.Causal()))

    @jax.jit
    def measured(x):
        _, seen = run(x)
        return {name: analysis.entropy(weights) for name, weights in seen.items()}, seen

    found, seen = measured(x)
    np.testing.assert_allclose(
        found["attention.0"],
        [loops.entropy(np.asarray(seen["attention.0"])[:, head], np.ones((1, 5), bool)) for head in range(2)],
        rtol=1e-5,
    )
