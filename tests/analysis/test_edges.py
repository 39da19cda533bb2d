"""Edges of analysis: what is left out reaches nothing, zeros have gradients, and input of another kind is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import analysis

RNG = np.random.default_rng(0)
WEIGHTS = RNG.dirichlet(np.ones(4), (2, 3, 4)).astype(np.float32)
HOLE = np.where(np.arange(4) == 3, np.nan, WEIGHTS).astype(np.float32)
EYE = np.eye(4, dtype=bool)
VALUES, OUTPUT = RNG.standard_normal((2, 4, 3, 5)), RNG.standard_normal((3, 5, 6))
PAIRS = analysis.labeled_pairs([[(1, 0)]] * 2, 4)


def test_what_is_left_out_reaches_nothing():
    """NaN in pieces without a word, and in gradients of pairs that do not count."""
    found = analysis.merge_pieces(HOLE, [0, 1, 1, -1])
    kept = WEIGHTS[..., :3, :3]
    want = np.stack([kept[..., 0, :], kept[..., 1:, :].mean(-2)], -2)
    want = np.stack([want[..., 0], want[..., 1:].sum(-1)], -1)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    where = np.isfinite(HOLE)
    found = analysis.gate_gradients(WEIGHTS, HOLE, where)
    np.testing.assert_allclose(found, np.where(where, WEIGHTS**2, 0).sum((-1, -2)), rtol=1e-6)


@pytest.mark.parametrize("finish", [lambda y: 0 * y, lambda y: 0 * y + jnp.arange(1.0, 7.0)], ids=["zero", "constant"])
def test_values_that_change_nothing_have_no_part(finish):
    assert not analysis.value_zeroing(WEIGHTS, VALUES, OUTPUT, finish).any()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: analysis.norms(WEIGHTS, jnp.broadcast_to(x, VALUES.shape) * 0, OUTPUT),
        lambda x: analysis.norms(WEIGHTS, jnp.broadcast_to(x, VALUES.shape) * 0, OUTPUT, joined=True),
        lambda x: analysis.head_distances(WEIGHTS * x, WEIGHTS),
    ],
    ids=["norms", "joined", "distances"],
)
def test_gradients_at_zero_are_finite(function):
    assert np.isfinite(jax.grad(lambda x: function(x).sum())(1.0))


def test_kinds_of_tokens_of_several_tokenizers():
    tokens = [
        "!</w>",
        "12</w>",
        "cat</w>",
        "</w>",
        "<0x0A>",
        "<0x41>",
        "<0xE2>",
        "[unused3]",
        "<｜end▁of▁sentence｜>",
        "Ġ你",
    ]
    kinds = analysis.token_kinds(tokens)
    found = [next(kind for kind, which in kinds.items() if which[place]) for place in range(len(tokens))]
    want = "punctuation number word special space word word special special word"
    assert found == want.split()


def test_the_sign_of_weights_does_not_matter_for_shares():
    np.testing.assert_allclose(analysis.pattern_share(-WEIGHTS, EYE), analysis.pattern_share(WEIGHTS, EYE), rtol=1e-6)
    np.testing.assert_allclose(analysis.offset_histogram(-WEIGHTS)[1], analysis.offset_histogram(WEIGHTS)[1], rtol=1e-6)


def test_a_query_that_attends_to_nothing_is_aligned_with_nothing():
    assert analysis.align(np.array([[0.0, 0.0], [0.2, 0.8]])) == {(1, 1)}


REFUSED = {
    "indices as booleans": (lambda: analysis.mass_on(WEIGHTS, [0, 3, 1, 0]), "`keys` must be booleans"),
    "shares as booleans": (lambda: analysis.pattern_share(WEIGHTS, EYE * 0.5), "`pairs` must be booleans"),
    "a pattern of numbers": (
        lambda: analysis.describe([WEIGHTS], patterns={"p": EYE * 0.5}),
        r"`patterns\['p'\]` must",
    ),
    "pairs without a name": (lambda: analysis.describe([WEIGHTS], pairs=PAIRS), "`pairs` must be a mapping from names"),
    "a query beyond the keys": (
        lambda: analysis.mean_distance(WEIGHTS, queries=[1, 2, 3, 4]),
        "`queries` must be integers",
    ),
    "half a position": (
        lambda: analysis.pattern("duplicate", np.arange(3), queries=[0.5]),
        "`queries` must be integers",
    ),
    "half a key": (lambda: analysis.sink_score(WEIGHTS, key=1.5), "`key` must be the index of one of 4 keys"),
    "no scores": (lambda: analysis.sink_rate({}), "`scores` must be numbers"),
    "a text for texts": (lambda: analysis.token_kinds("text"), "`tokens` must be a list of texts"),
    "no random key": (lambda: analysis.repeated_tokens(3, 1, 2, 5), "`key` must be one random key"),
    "NaN in a matrix": (
        lambda: analysis.copying(np.full((4, 4), np.nan), np.ones((4, 1, 4)), np.ones((1, 4, 4)), np.eye(4)),
        "`embedding` must be finite",
    ),
    "a layer for layers": (lambda: analysis.rollout(WEIGHTS), r"`layers` must be `Maps`.*For one layer: `\[weights\]`"),
    "one query": (lambda: analysis.with_residual(WEIGHTS[:, :, :1]), "`weights` must be of self-attention"),
    "NaN as capacity": (lambda: analysis.attention_flow([HOLE]), "`layers` must be of finite weights"),
    "relevance of heads": (
        lambda: analysis.cross_gradient_attention(WEIGHTS[0], WEIGHTS[0], np.ones((3, 4, 4)), np.eye(4)),
        "`relevance` and `encoder_relevance` must have shapes",
    ),
    "arrays for maps": (lambda: analysis.distances([WEIGHTS]), "`maps` must be `Maps`"),
    "a distance below 0": (lambda: analysis.embedding(np.eye(3) - 1), "`distances` must be at least 0"),
    "half a word": (lambda: analysis.labeled_pairs([[(1.5, 0)]], 3), "`pairs` must have a list of"),
    "one pair for a list": (lambda: analysis.labeled_pairs([(1, 0)], 3), "`pairs` must have a list of"),
    "a flag for a key": (lambda: analysis.labeled_pairs([[(1, 0)]], 3, among=[[True]]), "`among` must be indices"),
    "a root of another number": (lambda: analysis.dependency_pairs([[-2, 0]]), "`heads` must be indices"),
    "a mention before the text": (
        lambda: analysis.coreference_pairs([[[-1]]], 5),
        "`clusters` must be of tokens from 0 to 4",
    ),
    "pairs as integers": (lambda: analysis.Pairs(EYE[None] * 1, EYE[None]), "`right` and `among` must be booleans"),
    "words with fractions": (
        lambda: analysis.merge_pieces(WEIGHTS, [0.0, 1.0, 1.0, 1.0]),
        "`words` must be known integers",
    ),
    "a list for a mapping": (lambda: analysis.rank_heads([1.0, 2.0]), "`importance` must be a mapping"),
    "losses of examples": (
        lambda: list(analysis.pruned(lambda gates: np.ones(2), [("a", 0)])),
        "`loss` must return a number",
    ),
    "NaN to align": (lambda: analysis.align(HOLE[0, 0]), "`weights` must be finite"),
    "time that runs back": (lambda: analysis.word_times(WEIGHTS[0, :, :2], ["a"], [1], frame=-1.0), "`frame` must be"),
    "one number of a pair": (lambda: analysis.alignment_error_rate([0, 1], [(0, 0)]), "`found` must be pairs"),
    "half a head": (lambda: analysis.read([WEIGHTS], heads=1.5), "`heads` must be one index or several"),
    "flags for heads": (lambda: analysis.read([WEIGHTS], heads=[True, False]), "`heads` must be one index or several"),
    "no layers": (lambda: analysis.read([WEIGHTS], layers=[]), "`layers` must name at least one layer"),
    "a side that is none": (lambda: analysis.read([WEIGHTS], mask={"both": EYE}), "`mask` must have keys among"),
    "valid of other numbers": (
        lambda: analysis.read([WEIGHTS], valid=[[1, 2, 1, 0]] * 2),
        "`valid` must be ones or booleans",
    ),
    "queries and keys that do not fit": (
        lambda: analysis.read([WEIGHTS], query=[np.ones((2, 3, 4, 5))], key=[np.ones((2, 3, 4, 6))]),
        "must have the same number of features; got 5 and 6",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
