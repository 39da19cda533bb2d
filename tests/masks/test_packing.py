"""Masks and positions from the arrays of padded and packed batches, known at trace time and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, positions

RIGHT = np.arange(12) < np.array([[5], [12]])
LEFT = np.arange(12) >= np.array([[7], [0]])
HOLES = (np.arange(12) // 3 % 2 == 0) & RIGHT
RESTARTED = np.array([[0, 1, 2, 0, 1, 0, 1, 2, 3, 4], [4, 5, 6, 7, 0, 1, 2, 7, 8, 9]], np.int32)
CU, HALF = np.array([0, 3, 3, 8]), np.array([0, 1, 1, 4])
CU_IDS, HALF_IDS = np.repeat([0, 2, 3], [3, 5, 2]), np.repeat([0, 2, 3], [1, 3, 6])  # in rows of 10; 3 is padding
KEYS, KEY_IDS = np.array([0, 4, 5, 11]), np.repeat([0, 1, 2, 3], [4, 1, 6, 1])  # in a row of 12


def equal(*pairs, padding=None):
    """Pairs of tokens whose ids are the same and not those of padding, of each row."""
    return np.stack([(a[:, None] == b) & (a != padding)[:, None] for a, b in pairs])[:, None]


MASKS = {
    "ones and zeros, right": (masks.from_attention_mask, RIGHT.astype(np.int64), RIGHT[:, None, None]),
    "booleans, left": (masks.from_attention_mask, LEFT, LEFT[:, None, None]),
    "holes": (masks.from_attention_mask, HOLES.astype(np.int32), HOLES[:, None, None]),
    "one row": (masks.from_attention_mask, LEFT[0].astype(np.uint8), LEFT[:1, None]),
    "position ids": (
        masks.from_position_ids,
        RESTARTED,
        equal(*[(ids, ids) for ids in (np.repeat([0, 1, 2], [3, 2, 5]), np.repeat([0, 1, 2], [4, 3, 3]))]),
    ),
    "cu_seqlens": (lambda cu: masks.from_cu_seqlens(cu, 10), CU, equal((CU_IDS, CU_IDS), padding=3)),
    "cu_seqlens of each row": (
        lambda cu: masks.from_cu_seqlens(cu, 10),
        np.stack([CU, HALF]),
        equal((CU_IDS, CU_IDS), (HALF_IDS, HALF_IDS), padding=3),
    ),
    "cu_seqlens of queries and keys": (
        lambda cu: masks.from_cu_seqlens(cu, 10, key_cu_seqlens=KEYS, key_length=12),
        CU,
        equal((CU_IDS, KEY_IDS), padding=3),
    ),
}


def tiles(mask, q_len, kv_len):
    """Which tiles of 4 x 4 attention visits."""
    q, k = (jax.ShapeDtypeStruct((2, length, 1, 4), "float32") for length in (q_len, kv_len))
    cut = jattn.implementations.Tiled(4, 4)
    found = jattn.explain(q, k, k, mask=mask, query_positions=np.arange(q_len), implementation=cut)
    return np.asarray(found.plan.states) > 0


@pytest.mark.parametrize("name", MASKS)
def test_masks_say_and_skip_what_the_array_says(name):
    make, array, allowed = MASKS[name]
    kv_len = allowed.shape[-1]
    q_len = 10 if kv_len == 12 and "cu" in name else kv_len
    expected = np.broadcast_to(allowed, (*np.shape(allowed)[:-2], q_len, kv_len))
    ideal = [expected[..., i : i + 4, j : j + 4].any((-1, -2)) for i in range(0, q_len, 4) for j in range(0, kv_len, 4)]
    for one in (array, jnp.asarray(array)):
        found = masks.create(make(one), q_len, kv_len)
        np.testing.assert_array_equal(
            np.broadcast_to(found, np.broadcast_shapes(found.shape, expected.shape)), expected
        )
        assert (tiles(make(one), q_len, kv_len).sum((-1, -2)) == np.sum(ideal, 0)).all()  # in every row
    traced = jax.jit(lambda array: masks.create(make(array), q_len, kv_len))(array)
    np.testing.assert_array_equal(traced, found)


@pytest.mark.parametrize("traced", [False, True])
def test_positions_of_padded_and_packed_rows(traced):
    convert = jax.jit if traced else lambda function: function
    rows = {
        "left": (
            positions.from_attention_mask,
            LEFT.astype(np.int32),
            np.stack([[0] * 7 + [0, 1, 2, 3, 4], range(12)]),
        ),
        "packed": (lambda cu: positions.from_cu_seqlens(cu, 10), CU, [0, 1, 2, 0, 1, 2, 3, 4, 0, 0]),
        "last of their keys": (
            lambda cu: positions.from_cu_seqlens(cu, 10, key_cu_seqlens=KEYS),
            CU,
            [1, 2, 3, 1, 2, 3, 4, 5, 0, 0],
        ),
    }
    for name, (make, array, expected) in rows.items():
        found = convert(make)(array)
        assert traced or isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_left_padding_is_right_padding_moved():
    """With both constructors a causal, rotated call gives each token what it gets where its row begins at 0."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 12, 2, 4)) for i in range(3))

    def attend(q, k, v, mask):
        at = positions.from_attention_mask(mask)
        q, k = (jattn.positions.rotary(one, at) for one in (q, k))
        pieces = {"mask": masks.Causal() & masks.from_attention_mask(mask), "scores": jattn.scores.ALiBi.standard(2)}
        return jattn.attention(q, k, v, **pieces, query_positions=at, key_positions=at)

    left = attend(q, k, v, LEFT[:1])
    q, k, v = (jnp.roll(one, 5, 1) for one in (q, k, v))
    right = attend(q, k, v, RIGHT[:1])
    np.testing.assert_allclose(left[:, 7:], right[:, :5], atol=2e-6)


def test_create_takes_functions_lengths_and_positions():
    assert masks.create(lambda q, k: k <= q, 2, 2).tolist() == [[[True, False], [True, True]]]
    last = masks.create(masks.Causal(), 1, 3, query_positions=np.array([1]))
    assert last.tolist() == [[[True, True, False]]]
    assert masks.create(masks.SlidingWindow(np.array([0, 1]), 0), 3, 3).shape == (2, 3, 3)
    assert masks.create(masks.Lengths(jnp.array([1, 2])), 5, 3).shape == (2, 1, 5, 3)
    by_head = masks.create(lambda b, h, q, k: q - k == h, 3, 3, heads=2)
    assert by_head[..., 2, :].tolist() == [[False, False, True], [False, True, False]]
    at = np.array([[3, 4], [0, 9]])
    assert masks.create(masks.Causal(), 2, 2, key_positions=at)[1].tolist() == [[[True, False], [True, True]]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: masks.from_attention_mask(np.ones((2, 3))),
            "ones and zeros .* from_attention|`attention_mask` must be",
        ),
        (lambda: masks.from_attention_mask(np.array([[1, 2]])), "values from 1 to 2.*SameSegment"),
        (lambda: masks.from_attention_mask(1), "`attention_mask` must be"),
        (lambda: masks.from_position_ids(np.ones((2, 3))), "`position_ids` must be"),
        (lambda: masks.from_position_ids(3), "`position_ids` must be an integer array"),
        (lambda: masks.from_cu_seqlens(np.array([3, 5, 2])), "`cu_seqlens` must not decrease"),
        (lambda: masks.from_cu_seqlens(np.array([0, 5]), 4), "beyond the row's `length` 4"),
        (lambda: jax.jit(masks.from_cu_seqlens)(CU), "`length` must be given where `cu_seqlens` is traced"),
        (lambda: masks.from_cu_seqlens(CU, key_length=3), "`key_length` needs `key_cu_seqlens`"),
        (lambda: masks.from_cu_seqlens(CU, key_cu_seqlens=CU[:2]), "`key_cu_seqlens` must have the 4 entries"),
        (lambda: masks.from_cu_seqlens(CU, 2.0), "`length` must be a Python integer"),  # type: ignore[arg-type]
        (lambda: positions.from_cu_seqlens(CU, key_cu_seqlens=CU[:2]), "`key_cu_seqlens` must have the shape"),
        (lambda: positions.from_attention_mask([0.0, 1.0]), "`attention_mask` must be"),
        (lambda: masks.create(masks.Causal(), 2, 3), "`query_positions` is needed"),
        (lambda: masks.create(lambda b, h, q, k: q - k == h, 2, 2), "`batch` or `heads` must say"),
        (lambda: masks.create(masks.Causal(), 2.0, 3), "`q_len` must be"),  # type: ignore[arg-type]
        (lambda: masks.create(masks.Causal(), 2, 2, query_positions=np.arange(3)), "`query_positions` must be"),
        (lambda: masks.as_mask(RIGHT), "`jattn.masks.from_attention_mask.*SameSegment.*from_position_ids"),
        (lambda: masks.as_mask(RIGHT.tolist()), "`jattn.masks.from_attention_mask"),
        (lambda: masks.Dense(RIGHT), "`array` must have the axes .*`jattn.masks.from_attention_mask"),
        (lambda: masks.Dense(RIGHT.astype(int)), "`array` must have the axes .*`jattn.masks.from_attention_mask"),
        (lambda: masks.SlidingWindow(-1, -1), "at least 0 keys.*flash-attn"),
        (lambda: masks.SlidingWindow(-2, 0), "`left` must be an integer of at least -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_window_of_no_keys_allows_nothing():
    q, k, v = (jax.random.normal(jax.random.key(i), (9, 2, 4)) for i in range(3))
    window = masks.SlidingWindow(-1, 0)
    assert not masks.create(window, 3, 3).any() and not tiles(window, 9, 9).any()
    for implementation in ("tiled", "reference"):
        total = lambda *x, of=implementation: jattn.attention(*x, mask=window, implementation=of).sum()  # noqa: E731
        out, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
        assert out == 0 and not any(grad.any() for grad in grads)
    some = masks.create(masks.SlidingWindow(np.array([-1, 1]), 0), 3, 3)
    assert not some[0].any() and some[1].any(-1).all()


@pytest.mark.parametrize(
    "make",
    [
        masks.from_attention_mask,
        masks.from_position_ids,
        lambda array: masks.from_cu_seqlens(array, 7),
        lambda array: masks.from_cu_seqlens(array, 7, key_cu_seqlens=array, key_length=5),
    ],
)
@pytest.mark.parametrize("shape", [(4,), (2, 4), (0, 4)])
def test_of_shapes(make, shape):
    """Of a `ShapeDtypeStruct` there comes a piece with the shapes and dtypes that an array of it gives."""
    made = make(np.zeros(shape, np.int32))
    found = make(jax.ShapeDtypeStruct(shape, np.int32))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made
    )
