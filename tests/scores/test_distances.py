"""Scores per head, query and distance; buckets and tables of coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from flax import nnx

import jattn
import jattn.nnx
from jattn.foundation.pieces import align
from jattn.ops.attention.implementations import Tiled
from jattn.scores import RelativeBuckets, RelativeGrid, RelativeLogits
from jattn.similarities import RelativeDot
from jattn.variants.memory import relative_attention


def added(score, length):
    """What a score adds to each pair of `length` tokens."""
    aligned = align(score, (1,), {"head": 1, "query": length, "key": length})
    return aligned.modify(jnp.zeros((1, 1, length, length)), jnp.arange(length)[:, None], jnp.arange(length))[0, 0]


@pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), Tiled(2, 3)], ids=["reference", "tiled"]
)
def test_shaw_is_a_number_of_the_query_at_each_clipped_distance(implementation):
    """(q_i·k_j + q_i·a_clip(j - i, -2, 1)) / √dim, with its gradients in the query and in a."""
    q, k, v, a = normal(0, (7, 2, 4), (7, 2, 4), (7, 2, 3), (4, 4))

    def ours(q, k, v, a):
        scores = RelativeLogits.of_query(q, a, first=-2)
        return jattn.attention(
            q, k, v, scores=scores, mask=jattn.masks.SlidingWindow(4, 2), implementation=implementation
        )

    def truth(q, k, v, a):
        distance = np.arange(7) - np.arange(7)[:, None]
        scores = np.einsum("qhd,khd->hqk", q, k) + np.einsum("qhd,qkd->hqk", q, a[np.clip(distance, -2, 1) + 2])
        weights = np.where((distance >= -4) & (distance <= 2), np.exp(scores / 2), 0)
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)

    check(ours, truth, q, k, v, a)


@pytest.mark.exhaustive
def test_transformer_xl_by_a_table_of_distances():
    q, k, v, kernel, u, w = map(jnp.asarray, normal(1, (5, 2, 4), (8, 2, 4), (8, 2, 3), (6, 2, 4), (2, 4), (2, 4)))
    distance = np.arange(-7, 5)  # of keys from queries, which are the last five of eight
    angles = -distance[:, None] * 10000.0 ** -(np.arange(3) / 3)
    projected = jnp.einsum("rf,fhd->rhd", np.concatenate([np.sin(angles), np.cos(angles)], -1), kernel)
    scores = RelativeLogits.of_query(q + w, projected, first=-7)
    ours = jattn.attention(q + u, k, v, scores=scores, mask=jattn.masks.Causal(), query_positions=np.arange(3, 8))
    options = {"position_kernel": kernel, "content_bias": u, "position_bias": w, "mask": jattn.masks.Causal()}
    want = relative_attention(q, k, v, **options)
    np.testing.assert_allclose(ours, want, atol=3e-6)
    similarity = RelativeDot(jnp.swapaxes(projected, 0, 1), -7, u, w)
    pieces = {"similarity": similarity, "mask": jattn.masks.Causal()}
    np.testing.assert_allclose(jattn.attention(q, k, v, **pieces, query_positions=np.arange(3, 8)), want, atol=3e-6)
    with pytest.raises(ValueError, match="`similarity` depends on query positions"):
        jattn.attention(q, k, v, similarity=similarity)


def test_a_layer_learns_vectors_of_distances():
    similarity = RelativeDot(jnp.ones((5, 4)), first=-2)
    layer = jattn.nnx.MultiHeadAttention(8, 2, similarity=similarity, learned="similarity", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    gradient = nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer)
    assert jnp.abs(gradient["similarity"].distances[...]).max(-1).min() > 0


def test_buckets_by_coordinates_as_in_udop():
    """`RelativePositionBiasHorizontal` of transformers 5.24.0, with the numbers of the buckets for its table."""
    x = np.array([[0.0, 0.07, 0.5, 0.93, 0.36]], np.float32)
    table = np.arange(16, dtype=np.float32)[:, None]
    expected = [[0, 12, 15, 15, 14], [4, 0, 14, 15, 14], [7, 6, 0, 14, 5], [7, 7, 6, 0, 7], [6, 6, 13, 15, 0]]
    scores = RelativeBuckets(table, max_distance=100, query_coordinates=x, scale=100.0)
    np.testing.assert_array_equal(added(scores, 5), expected)
    whole = RelativeBuckets(table, max_distance=100, query_coordinates=(x * 100).round().astype(np.uint8))
    np.testing.assert_array_equal(added(whole, 5), expected)


def test_a_table_by_offsets_as_in_swin():
    """`SwinRelativePositionBias` of transformers 5.24.0 for a window of 2 x 3; a class token in front gets nothing."""
    offsets = [
        [7, 6, 5, 2, 1, 0],
        [8, 7, 6, 3, 2, 1],
        [9, 8, 7, 4, 3, 2],
        [12, 11, 10, 7, 6, 5],
        [13, 12, 11, 8, 7, 6],
        [14, 13, 12, 9, 8, 7],
    ]
    table = np.arange(15, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(added(RelativeGrid(table, (2, 3)), 6), offsets)
    np.testing.assert_array_equal(added(RelativeGrid(table, (2, 3), start=1), 7), np.pad(offsets, ((1, 0), (1, 0))))


@pytest.mark.exhaustive
def test_nothing_as_large_as_the_scores_is_kept():
    """The gradient's memory grows with the length, not with its square; tiles beyond the window are skipped."""

    def held(length):
        q = jax.ShapeDtypeStruct((1, length, 2, 8), "float32")
        a = jax.ShapeDtypeStruct((9, 8), "float32")

        def loss(q, a):
            scores = RelativeLogits.of_query(q, a, first=-8)
            mask = jattn.masks.SlidingWindow(100, 0)
            return jattn.attention(q, q, q, scores=scores, mask=mask, implementation=Tiled(128, 128)).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(q, a).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = held(1024), held(2048)
    assert long - short < 2 * short and long - short < 2**20  # the scores alone would be 24 MiB more
    q = jax.ShapeDtypeStruct((1, 1024, 2, 8), "float32")
    logits = jax.ShapeDtypeStruct((2, 1024, 9), "float32")
    found = jattn.explain(
        q,
        q,
        q,
        scores=RelativeLogits(logits, first=-8),
        mask=jattn.masks.SlidingWindow(100, 0),
        implementation=Tiled(128, 128),
    )
    assert found.plan.counts()[0] == 15


ROWS = np.zeros((1, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelativeLogits(ROWS[0], first=0), "`logits` must be a floating-point array"),
        (lambda: RelativeLogits(ROWS[..., :0], first=0), "at least one distance"),
        (lambda: RelativeLogits(ROWS, first=0.5), "`first` must be a Python integer"),  # type: ignore[arg-type]
        (lambda: RelativeLogits(ROWS, 0, np.arange(3.0)), "`query_coordinates` must be integers"),
        (lambda: RelativeLogits(ROWS, 0, None, np.arange(3)), "`key_coordinates` needs `query_coordinates`"),
        (lambda: RelativeLogits.of_query(jnp.ones((3, 2, 4)), np.ones((5, 3)), 0), "`distances` .*; got"),
        (lambda: RelativeLogits.of_query(jnp.ones((3, 2, 4)), np.ones((5, 3, 4)), 0), "`distances` .*; got"),
        (
            lambda: RelativeLogits.of_query(jnp.ones((3, 2, 4)), np.ones((5, 4), int), 0),
            "`distances` must be a floating",
        ),
        (lambda: RelativeDot(np.ones((3, 4), int), 0), "`distances` must be a floating-point"),
        (lambda: RelativeDot(np.ones((3, 4)), 0.5), "`first` must be a Python integer"),  # type: ignore[arg-type]
        (lambda: RelativeDot(np.ones((3, 4)), 0, scale=np.ones(2)), "`scale` must be a finite"),  # type: ignore[arg-type]
        (
            lambda: jattn.attention(*[jnp.ones((3, 2, 4))] * 3, similarity=RelativeDot(np.ones((3, 3, 4)), 0)),
            "`RelativeDot.distances` of shape .* has size 3 on its head axis",
        ),
        (lambda: RelativeBuckets(np.ones((4, 1), np.float32), scale=2.0), "`scale` is that of coordinates"),
        (lambda: RelativeBuckets(np.ones((4, 1), np.float32), query_coordinates=["a"]), "`query_coordinates`"),
        (lambda: RelativeGrid(np.ones((14, 1), np.float32), (2, 3)), "`table` must have 15 rows"),
        (lambda: RelativeGrid(np.ones((15, 1), np.float32), (2, 3), start=-1), "`start` must be"),
        (lambda: RelativeGrid(np.ones((15, 1), np.float32), (2.0, 3)), "`shape"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
