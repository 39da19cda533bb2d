"""T5's relative buckets."""

import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal

import jattn
from jattn.foundation.pieces import align
from jattn.ops.attention.implementations import Tiled
from jattn.scores import RelativeBuckets
from jattn.scores.relative import relative_bucket


def t5_bucket(relative, buckets, bidirectional, max_distance):
    """As the paper's code has it, in float64; a nudge undoes rounding where the logarithms are an exact integer."""
    first = np.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        first = np.where(relative > 0, buckets, 0)
        n = np.abs(relative)
    else:
        n = np.maximum(-relative, 0)
    exact = buckets // 2
    fraction = np.log(np.maximum(n, 1) / exact) / np.log(max_distance / exact)
    large = exact + np.floor(fraction * (buckets - exact) + 1e-9).astype(int)
    return first + np.where(n < exact, n, np.minimum(large, buckets - 1))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 20), (8, 64), (64, 1000), (4, 9)])
def test_the_buckets_are_those_of_the_paper(buckets, max_distance, bidirectional):
    if max_distance <= buckets // (4 if bidirectional else 2):
        pytest.skip("the buckets cover every distance")
    relative = np.arange(-1500, 1501)
    ours = relative_bucket(jnp.asarray(relative), buckets, bidirectional, max_distance)
    np.testing.assert_array_equal(ours, t5_bucket(relative, buckets, bidirectional, max_distance))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_looked_up_and_its_table_learned(bidirectional):
    s, table = normal(0, (2, 3, 4, 6), (8, 3))
    here, there = np.arange(4)[:, None] * 3, np.arange(6) * 2

    def ours(s, table):
        score = align(RelativeBuckets(table, bidirectional, 10), (2,), {"head": 3, "query": 4, "key": 6})
        return score.modify(s, jnp.asarray(here), jnp.asarray(there))

    def truth(s, table):
        return s + table[t5_bucket(there - here, 8, bidirectional, 10)].transpose(2, 0, 1)

    check(ours, truth, s, table)


def test_tables_of_each_batch_element_and_tables_shared_by_heads():
    here, there = jnp.arange(4)[:, None], jnp.arange(6)
    buckets = t5_bucket(np.asarray(there - here), 8, True, 10)
    (tables, shared) = normal(1, (2, 8, 3), (8, 1))
    sizes = {"head": 3, "query": 4, "key": 6}
    ours = align(RelativeBuckets(tables, max_distance=10), (2,), sizes).modify(jnp.zeros((2, 3, 4, 6)), here, there)
    np.testing.assert_array_equal(ours, np.stack([table[buckets].transpose(2, 0, 1) for table in tables]))
    ours = align(RelativeBuckets(shared, max_distance=10), (2,), sizes).modify(jnp.zeros((2, 3, 4, 6)), here, there)
    np.testing.assert_array_equal(ours, np.broadcast_to(shared[buckets].transpose(2, 0, 1), (2, 3, 4, 6)))


def test_tiles_change_nothing():
    q, k, v, table = normal(2, (7, 4, 3), (7, 2, 3), (7, 2, 2), (8, 4))

    def truth(q, k, v, table):
        k, v = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
        relative = np.arange(7) - np.arange(7)[:, None]
        scores = np.einsum("qhd,khd->hqk", q, k) + table[t5_bucket(relative, 8, True, 6)].transpose(2, 0, 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)

    def ours(q, k, v, table):
        return jattn.attention(
            q,
            k,
            v,
            similarity=jattn.similarities.Dot(),
            scores=RelativeBuckets(table, max_distance=6),
            implementation=Tiled(3, 2),
        )

    check(ours, truth, q, k, v, table)


@pytest.mark.parametrize("shape", [(2, 3), (6, 3), (0, 3)])
def test_two_directions_need_a_multiple_of_four_buckets(shape):
    with pytest.raises(ValueError, match="multiple of 4 rows"):
        RelativeBuckets(np.zeros(shape, np.float32))


@pytest.mark.parametrize("max_distance", [8, 0, 9.5, True])
def test_the_largest_distance_must_be_beyond_the_exact_buckets(max_distance):
    with pytest.raises(ValueError, match="`max_distance` must be an integer above 8"):
        RelativeBuckets(np.zeros((32, 1), np.float32), max_distance=max_distance)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="`table` must be a floating-point array"):
        RelativeBuckets(np.zeros((32, 2), int))
    with pytest.raises(ValueError, match="`table` must be a floating-point array"):
        RelativeBuckets(np.zeros(32, np.float32))
    with pytest.raises(ValueError, match="`bidirectional`"):
        RelativeBuckets(np.zeros((32, 2), np.float32), 1)  # type: ignore[arg-type]
