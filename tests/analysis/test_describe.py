"""Labeled pairs, and the table of heads."""

import numpy as np
import pytest

from jattn import analysis, masks

RANDOM = np.random.default_rng(0)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def by_hand(tokens, sharp=12.0):
    """Causal heads made for each pattern, and an even one, as the scores of a softmax."""
    names = ["previous", "current", "first", "duplicate", "induction", "delimiter"]
    ends = analysis.token_kinds(tokens)["punctuation"][None]
    words = np.unique(tokens, return_inverse=True)[1].astype(np.int32)[None]
    pairs = [np.asarray(analysis.pattern(name, words, delimiters=ends))[0] for name in names]
    causal = np.where(np.tril(np.ones((len(tokens),) * 2, bool)), 0, -np.inf)
    return [*names, "-"], softmax(np.stack([sharp * one for one in [*pairs, 0 * pairs[0]]]) + causal)


TOKENS = ["the", "cat", "sat", ".", "dog", "ran", ".", "the", "cat", "sat", ".", "dog"]


@pytest.fixture(scope="module")
def heads():
    _, maps = by_hand(TOKENS)
    return analysis.describe([maps, maps[::-1]], tokens=TOKENS, mask=masks.Causal())


def test_each_head_has_the_label_that_it_was_made_for(heads):
    names, _ = by_hand(TOKENS)
    assert [head.label for head in heads] == [*names, *names[::-1]]
    for head in heads:
        if head.label == "-":
            assert all(abs(score) < 1e-5 for score in head.scores.values())
        else:
            assert head.score > 0.98 and head.score == head.scores[head.label]
            assert np.isclose(head.margin, head.score - sorted(head.scores.values())[-2])
    for name in names[:-1]:
        assert heads.best(name).label == name
        assert heads.lead(name) < 1e-5  # the same head is in both layers
    with pytest.raises(ValueError, match=r"got 'next'\. no query has both a key of next and another"):
        heads.best("next")


def test_heads_are_sorted_and_found(heads):
    assert heads.sorted("entropy")[0].label == "-"
    assert heads.sorted("entropy", descending=False)[0].label != "-"
    assert [(one.number, one.head) for one in heads.sorted("score").sorted("layer")] == [
        (layer, head) for layer in range(2) for head in range(7)
    ]
    assert heads.of(1, 6).label == heads.of("0", 0).label == "previous"
    assert len(heads[:3]) == 3 and heads[:3].notes == heads.notes
    with pytest.raises(KeyError, match="no head 7 of layer 1"):
        heads.of(1, 7)
    with pytest.raises(ValueError, match="`by` must be one of 'score'"):
        heads.sorted("depth")
    with pytest.raises(ValueError, match=r"`label` must be one of 'previous'.*got 'syntax'"):
        heads.best("syntax")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda heads: heads.table("a"), "`most` must be an int.*got 'a'"),
        (lambda heads: heads.table(-1), "`most` must be an int of at least 0; got -1"),
        (lambda heads: heads["previous"], r"an index of `Heads` must be an int; got 'previous'"),
        (lambda heads: heads.of(np.arange(2), 0), "`layer` must be a number or a name"),
        (lambda heads: heads.of(0, "6"), "`head` a number; got"),
        (lambda heads: heads.sorted(np.arange(2)), "`by` must be one of"),
        (lambda heads: heads.sorted(descending="no"), "`descending` must be True or False"),
        (lambda heads: heads.best(3), "`label` must be one of .*got 3"),
        (lambda heads: heads.lead(["previous"]), "`label` must be one of"),
    ],
)
def test_arguments_of_another_kind_are_named(heads, call, message):
    with pytest.raises(ValueError, match=message):
        call(heads)


def test_the_table_says_who_is_best(heads):
    lines = repr(heads).splitlines()
    assert lines[0].split() == ["pattern", "best", "head", "score", "above", "the", "next", "head"]
    assert lines[1].split()[:4] == ["previous", "0", "0", heads.best("previous").scores["previous"].__format__(".2f")]
    assert len(heads.table().splitlines()) == 15
    many = analysis.describe([by_hand(TOKENS)[1]] * 4, tokens=TOKENS)
    assert "and 8 more heads: `.table()` has all" in repr(many)


def test_padding_and_examples_do_not_change_a_description():
    _, maps = by_hand(TOKENS)
    length = len(TOKENS)
    padded = np.zeros((2, len(maps), length + 3, length + 3), np.float32)
    padded[0, :, :length, :length] = maps
    padded[:, :, length:, 0] = 1  # what padding attends to is not counted
    padded[1] = padded[0]
    tokens = [*TOKENS, "[PAD]", "[PAD]", "[PAD]"]
    valid = [[1] * length + [0] * 3] * 2
    alone = analysis.describe([maps], tokens=TOKENS, mask=masks.Causal())
    found = analysis.describe([padded], tokens=tokens, valid=valid, mask=masks.Causal())
    for one, other in zip(alone, found, strict=True):
        assert one.label == other.label
        for name, score in one.scores.items():
            assert np.isclose(score, other.scores[name], atol=1e-5), name
        for name, value in one.measures.items():
            assert np.isclose(value, other.measures[name], atol=1e-5), name


def test_several_examples_under_one_mask():
    """Each with its own tokens, so that a pattern differs between examples and the mask does not."""
    others = TOKENS[4:] + TOKENS[:4]
    maps = np.stack([by_hand(words)[1] for words in (TOKENS, others)])
    heads = analysis.describe([maps], tokens=[TOKENS, others], mask=masks.Causal())
    assert [head.label for head in heads] == by_hand(TOKENS)[0]
    alone = [analysis.describe([maps], tokens=[TOKENS, others], mask=masks.Causal(), examples=one) for one in (0, 1)]
    for head, first, second in zip(heads, *alone, strict=True):
        low, high = sorted([first.measures["entropy"], second.measures["entropy"]])
        assert low - 1e-6 <= head.measures["entropy"] <= high + 1e-6


def test_cross_attention_is_described_by_what_is_given():
    maps = softmax(20 * np.stack([np.eye(3, 5, k=1), np.eye(3, 5), np.zeros((3, 5))]))
    shifted = {"shifted": np.eye(3, 5, k=1, dtype=bool)}
    heads = analysis.describe({"cross": [maps]}, patterns=shifted)
    assert heads.labels == ["first", "shifted"] and heads.best("shifted").head == 0
    assert np.isnan(heads[0].measures["distance"])
    source = {"decoder": [maps[..., :3]], "cross": [maps]}
    with pytest.raises(ValueError, match=r"`patterns\['shifted'\]` must be booleans \[3, 3\]"):
        analysis.describe(source, patterns=shifted)
    only = {"shifted": lambda layer: shifted["shifted"] if layer.side == "cross" else None}
    assert analysis.describe(source, patterns=only).best("shifted").layer == "cross.0"


def test_nan_is_said_and_comes_last():
    _, maps = by_hand(TOKENS)
    maps[0, 3, 2] = np.nan
    heads = analysis.describe([maps], tokens=TOKENS)
    assert heads[0].label == "NaN" and heads.sorted("previous")[-1].head == 0
    assert "1 of 1,008 weights are NaN or infinite, the first in head 0" in repr(heads)
    assert heads.best("induction").head == 4


def test_pairs_choose_their_head():
    """A head that knows the pairs comes first, though another is right as often as the best offset."""
    rng = np.random.default_rng(1)
    length, examples = 9, 4
    pairs = [[(i, int(rng.integers(0, i))) for i in range(3, length)] for _ in range(examples)]
    knows = np.zeros((examples, length, length))
    for example, some in enumerate(pairs):
        for query, key in some:
            knows[example, query, key] = 1
    scores = np.stack([knows, np.broadcast_to(np.eye(length, k=-1), knows.shape), 0 * knows], 1)
    labeled = analysis.labeled_pairs(pairs, length)
    heads = analysis.describe([softmax(9 * scores)], pairs={"truth": labeled})
    best = heads.best("truth")
    offset, share = analysis.best_offset(labeled)
    assert (best.head, best.label, best.accuracy["truth"]) == (0, "truth", (1.0, share))
    assert f"right 1.000, best offset {share:.3f}" in repr(heads)
    again = max(range(1 - length, length), key=lambda o: sum(k == q + o for some in pairs for q, k in some))
    assert share == sum(k == q + offset for some in pairs for q, k in some) / sum(map(len, pairs))
    assert share == sum(k == q + again for some in pairs for q, k in some) / sum(map(len, pairs))
    with pytest.raises(ValueError, match=r"`pairs\['truth'\]` must have the .* of some layer, such as \[1, 9, 9\]"):
        analysis.describe([softmax(scores[:1])], pairs={"truth": labeled})


def test_accuracy_is_its_definition():
    weights = RANDOM.random((3, 2, 6, 6)).astype(np.float32)
    pairs = [[(int(q), int(k)) for q, k in RANDOM.integers(0, 6, (5, 2))] for _ in range(3)]
    among = [sorted({k for _, k in some} | {0}) for some in pairs]
    found = analysis.pair_accuracy(weights, analysis.labeled_pairs(pairs, 6, among=among))
    for head in range(2):
        hits = []
        for example, some in enumerate(pairs):
            for query in {q for q, _ in some}:
                chosen = max(among[example], key=lambda key: weights[example, head, query, key])
                hits.append((query, chosen) in some)
        assert np.isclose(found[head], np.mean(hits))


def test_a_head_that_says_nothing_is_right_about_nothing():
    pairs = analysis.labeled_pairs([[(1, 0), (2, 1)]], 3)
    for nothing in (np.zeros((1, 1, 3, 3)), np.full((1, 1, 3, 3), 1 / 3)):
        assert analysis.pair_accuracy(nothing, pairs).tolist() == [0]


def test_syntax_and_coreference():
    heads = [[1, 2, -1], [1, -1]]
    pairs = analysis.dependency_pairs(heads)
    assert [np.argwhere(one).tolist() for one in pairs.right] == [[[0, 1], [1, 2]], [[0, 1]]]
    back = analysis.dependency_pairs(heads, 4, reverse=True)
    assert [np.argwhere(one).tolist() for one in back.right] == [[[1, 0], [2, 1]], [[1, 0]]]
    assert not pairs.among[0].diagonal().any()
    assert analysis.best_offset(pairs) == (1, 1.0)
    mentions = analysis.coreference_pairs([[[0, 3, 5], [1, 4]], [[2]]], 6)
    assert np.argwhere(mentions.right[0]).tolist() == [[3, 0], [4, 1], [5, 0], [5, 3]]
    assert np.flatnonzero(mentions.among[0, 4]).tolist() == [0, 1, 3]
    assert not mentions.asked[1].any()


def test_pieces_are_merged_as_sums_over_keys_and_means_over_queries():
    weights = softmax(RANDOM.normal(size=(2, 5, 5)))
    words = [0, 1, 1, -1, 2]
    want = np.zeros((2, 3, 3))
    for a in range(3):
        for b in range(3):
            queries = [i for i, word in enumerate(words) if word == a]
            keys = [i for i, word in enumerate(words) if word == b]
            want[:, a, b] = np.mean([sum(weights[:, i, j] for j in keys) for i in queries], 0)
    np.testing.assert_allclose(analysis.merge_pieces(weights, words), want, rtol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: analysis.labeled_pairs([[(1, 3)]], 3), r"keys from 0 to 2; got \(1, 3\) in example 0"),
        (lambda: analysis.labeled_pairs([[(1, 0)]], 3, among=[[1]]), r"\(1, 0\) of example 0 is not"),
        (lambda: analysis.labeled_pairs([[(1, 0)]], 3, among=[]), "one list for each of 1 examples; got 0"),
        (lambda: analysis.labeled_pairs([[(1, 0)]], 3, among=[[3]]), "indices from 0 to 2"),
        (lambda: analysis.labeled_pairs([[(1, 0, 2)]], 3), r"list of \(query, key\)"),
        (lambda: analysis.merge_pieces(np.ones((3, 3)), [0, 2, 2]), "without gaps"),
        (lambda: analysis.merge_pieces(np.ones((3, 3)), [0, 1]), "each of 3 pieces"),
        (lambda: analysis.pair_accuracy(np.ones((1, 1, 3, 3)), [(1, 0)]), "`pairs` must be `Pairs` of shape"),
        (lambda: analysis.describe([np.ones((1, 3, 3))], pairs={"a": [(0, 1)]}), r"`pairs\['a'\]` must be `Pairs`"),
        (
            lambda: analysis.describe([np.ones((1, 3, 3))], patterns={"first": np.ones((3, 3))}),
            "names of their own; got 'first' twice",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
