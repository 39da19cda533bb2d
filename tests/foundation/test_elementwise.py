"""Whether a mask or score treats each pair separately, and whether it depends on positions, read from its jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, scores
from jattn.foundation.elementwise import mask_reads_positions, score_reads_positions
from jattn.foundation.pieces import align, array, piece

TABLE = jnp.arange(8)


@pytest.mark.parametrize(
    ("mask", "used"),
    [
        (None, (False, False)),
        (masks.Causal(), (True, True)),
        (masks.Sinks(3), (False, True)),
        (masks.Lengths(np.array([3, 4, 5])), (False, True)),
        (masks.SlidingWindow(np.array([3, 4]), 0), (True, True)),
        (masks.SameSegment(np.zeros(8, int)), (False, False)),
        (masks.Dense(np.ones((2, 8, 8), bool)), (False, False)),
        (masks.Blocks(np.ones((2, 2, 2), bool), 4), (True, True)),
        (masks.SameSegment(np.zeros(8, int)) & masks.of(lambda q, k: k < 3), (False, True)),
        (masks.of(lambda q, k: TABLE[k] == 1), (False, True)),
        (masks.of(lambda q, k: jax.jit(lambda a, b: b + 0 * k)(q, k) > 3), (False, True)),
        (masks.of(lambda q, k: divmod(q, 3)[0] > 1), (True, False)),
    ],
)
def test_masks(mask, used):
    aligned = align(mask, (3,), {"head": 2, "query": 8, "key": 8})
    assert mask_reads_positions(aligned) == used
    assert jax.jit(lambda mask: jnp.array(mask_reads_positions(mask)))(aligned).tolist() == list(used)


def test_a_computation_whose_result_is_dropped_does_not_count():
    def allows(q, k):
        unused = q * 2  # traced, and dead
        del unused
        return k > 3

    assert mask_reads_positions(align(masks.of(allows), (), {"head": 1, "query": 8, "key": 8})) == (False, True)


@pytest.mark.parametrize(
    ("score", "used"),
    [
        (scores.of(lambda s, q, k: s + k), (False, True)),
        (scores.of(lambda s, q, k: s * 2), (False, False)),
        (scores.Bias(np.zeros((2, 8, 8), np.float32)), (False, False)),
        (scores.ALiBi(np.ones(2, np.float32)), (True, True)),
        (scores.SoftCap(3.0), (False, False)),
        (scores.RelativeBuckets(np.zeros((32, 2), np.float32)), (True, True)),
    ],
)
def test_scores(score, used):
    assert score_reads_positions(align(score, (3,), {"head": 2, "query": 8, "key": 8})) == used


@piece
class Written(scores.Score):
    """A score by what it does to `scores` with its table, positions, and the last two."""

    what: object
    table: jax.Array = array("head", "bucket")

    def modify(self, scores, query, key):
        return self.what(scores, query, key, self.table)


@piece
class Seen(masks.Mask):
    """Likewise a mask."""

    what: object
    table: jax.Array = array("head", "bucket")

    def allows(self, query, key):
        return self.what(query, key, self.table)


QUERY, BUCKETS = jnp.ones((2, 6, 2, 4)), jnp.ones((2, 3))


def attend(**pieces):
    return jax.eval_shape(lambda query: jattn.attention(query, query, query, **pieces), QUERY)


@pytest.mark.parametrize(
    ("what", "primitive"),
    [
        (lambda s, q, k, t: jax.nn.softmax(s, -1), "reduce_max"),
        (lambda s, q, k, t: s - s.mean(), "reduce_sum"),
        (lambda s, q, k, t: jnp.cumsum(s, -2), "cumsum"),
        (lambda s, q, k, t: jnp.sort(s, -1), "sort"),
        (lambda s, q, k, t: s[..., ::-1], "rev"),
        (lambda s, q, k, t: jnp.roll(s, 1, -1), "slice|concatenate"),
        (lambda s, q, k, t: s + jnp.arange(s.shape[-1]), "iota"),
        (lambda s, q, k, t: s * jax.random.uniform(jax.random.key(0), s.shape), "iota|random_bits"),
        (lambda s, q, k, t: s + t.sum(), "reduce_sum"),
        (lambda s, q, k, t: s + jnp.argmax(s, -1, keepdims=True), "argmax"),
        (lambda s, q, k, t: s + s @ jnp.swapaxes(s, -1, -2) @ s, "dot_general"),
        (lambda s, q, k, t: s + s[..., :1], "slice"),
        (lambda s, q, k, t: jnp.sort(s.reshape(-1)).reshape(s.shape), "reshape"),
        (lambda s, q, k, t: s + jax.lax.associative_scan(jnp.add, s, axis=-1), "slice"),
        (lambda s, q, k, t: jax.lax.scan(lambda c, x: (c + x, c), s[0], s)[1], "scan|slice"),
        (lambda s, q, k, t: jax.jit(lambda x: x - x.max(-1, keepdims=True))(s), "reduce_max"),
    ],
)  # fmt: skip
def test_scores_that_look_along_an_axis_are_refused_by_the_primitives_name(what, primitive):
    with pytest.raises(ValueError, match=f"`scores` must be elementwise.*`Written.modify`.*primitive `({primitive})`"):
        attend(scores=Written(what, BUCKETS))


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({"mask": Seen(lambda q, k, t: jnp.any(k <= q), BUCKETS)}, "`Seen.allows` has the primitive `reduce_or`"),
        ({"mask": masks.Causal() & ~Seen(lambda q, k, t: (k <= q).all(-1, keepdims=True), BUCKETS)}, "`Seen.allows`"),
        ({"mask": lambda q, k: jnp.any(k <= q)}, "primitive `reduce_or`"),
        ({"mask": lambda b, h, q, k: jnp.all(k <= q + h)}, "primitive `reduce_and`"),
        ({"scores": lambda s, q, k: s / s.sum()}, "primitive `reduce_sum`"),
        ({"scores": lambda s, q, k: jax.nn.softmax(s, -1)}, "looks along an axis.*normalizer"),
        ({"mask": Seen(lambda q, k, t: q - k, BUCKETS)}, r"`mask` must say True or False.*int32"),
        ({"mask": Seen(lambda q, k, t: (k <= q)[..., None], BUCKETS)}, "`mask` must answer for each pair"),
        ({"mask": Seen(lambda q, k, t: 1 if q > k else 0, BUCKETS)}, "`Seen.allows` asks in Python"),
        ({"scores": Written(lambda s, q, k, t: s.astype(jnp.bfloat16), BUCKETS)}, "dtype, float32.*bfloat16"),
        ({"scores": Written(lambda s, q, k, t: jnp.zeros(()), BUCKETS)}, "dtype|keep their shape"),
        ({"scores": Written(lambda s, q, k, t: s + jnp.swapaxes(s, -1, -2), BUCKETS)}, "`Written.modify` fails"),
    ],
)  # fmt: skip
def test_pieces_that_are_not_elementwise_are_refused(pieces, message):
    with pytest.raises(ValueError, match=message):
        attend(**pieces)


@pytest.mark.parametrize(
    "pieces",
    [
        {"scores": Written(lambda s, q, k, t: s + t.sum(-1) + t[..., 0], BUCKETS)},
        {"scores": Written(lambda s, q, k, t: s + jnp.take(jnp.arange(9.0), q - k), BUCKETS)},
        {"scores": Written(lambda s, q, k, t: jax.nn.relu(s) + jnp.where(q > k, 0, jnp.zeros_like(s)), BUCKETS)},
        {"scores": Written(lambda s, q, k, t: s + jnp.sort(t, -1)[..., jnp.arange(3)].max(-1), BUCKETS)},
        {"scores": scores.RelativeBuckets(jnp.ones((8, 2)))},
        {"mask": lambda q, k: (jnp.arange(3) == k // 2).any()},
        {"mask": lambda q, k: jnp.searchsorted(jnp.arange(3), q) == jnp.searchsorted(jnp.arange(3), k)},
        {"mask": masks.Blocks(np.ones((2, 2, 2), bool), 3)},
    ],
)
def test_pieces_may_look_along_their_own_axes(pieces):
    assert attend(**pieces).shape == QUERY.shape


def test_pieces_are_neither_true_nor_false():
    for make in (
        lambda: masks.Causal() and masks.SlidingWindow(1),
        lambda: not masks.Causal(),
        lambda: scores.SoftCap(3.0) or (),
        lambda: bool(jattn.normalizers.Softmax()),
    ):
        with pytest.raises(ValueError, match=r"neither true nor false.*`&`, `\|` and `~`"):
            make()
