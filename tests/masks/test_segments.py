"""Masks by segments and lengths."""

import jax.numpy as jnp
import numpy as np
import pytest
from mask_pairs import allowed, defined

from jattn import masks

IDS = np.array([[1, 1, 2, 2, 2, 0, 0], [3, 1, 1, 3, 0, 3, 7]])  # the second row is in no order
KEYS = np.array([[2, 2, 1, 0, 9], [0, 3, 3, 7, 1]])


@pytest.mark.parametrize("backend", [np, jnp])
@pytest.mark.parametrize("padding", [None, 0])
def test_own_segment(backend, padding):
    both = allowed(masks.SameSegment(backend.asarray(IDS), backend.asarray(KEYS), padding), 7, 5, (2,), 3)
    own = allowed(masks.SameSegment(backend.asarray(IDS), padding_id=padding), 7, 7, (2,), 3)
    for b in range(2):
        for found, keys in ((both, KEYS), (own, IDS)):
            wanted = defined(
                lambda i, j, b=b, keys=keys: IDS[b, i] == keys[b, j] and IDS[b, i] != padding,
                7,
                keys.shape[1],
            )
            np.testing.assert_array_equal(found[b], np.stack([wanted] * 3))


def test_ids_ride_on_the_arrays_not_on_positions():
    restarted = [0, 1, 0, 1, 2, 0, 1]
    mask = masks.Causal() & masks.SameSegment(IDS[0])
    found = allowed(mask, 7, 7, query=restarted, key=restarted)
    wanted = defined(lambda i, j: restarted[j] <= restarted[i] and IDS[0, i] == IDS[0, j], 7, 7)
    np.testing.assert_array_equal(found[0], wanted)


def test_padding_attends_nothing_and_is_attended_by_nothing():
    found = allowed(masks.SameSegment(IDS[0], padding_id=0), 7, 7)[0]
    assert not found[5:].any() and not found[:, 5:].any()
    assert allowed(masks.SameSegment(IDS[0]), 7, 7)[0][5:, 5:].all()  # without one, padding is a segment
    negative = allowed(masks.SameSegment(np.array([4, -1, -1]), padding_id=-1), 3, 3)[0]
    np.testing.assert_array_equal(negative, np.diag([True, False, False]))


def test_keys_that_are_left_out_are_the_queries():
    assert masks.SameSegment(IDS) == masks.SameSegment(IDS, IDS)
    assert masks.SameSegment(IDS) != masks.SameSegment(IDS, padding_id=0)
    assert masks.SameSegment([1, 1, 2]) == masks.SameSegment(np.array([1, 1, 2]))


def test_lengths():
    keys, queries = np.array([0, 3, 9]), np.array([2, 7, 0])
    found = allowed(masks.Lengths(keys, queries), 6, 8, (3,), 2)
    open_queries = allowed(masks.Lengths(jnp.asarray(keys)), 6, 8, (3,), 2)
    for b in range(3):
        length, rows = keys[b], queries[b]
        wanted = defined(lambda q, k, length=length, rows=rows: k < length and q < rows, 6, 8)
        np.testing.assert_array_equal(found[b], np.stack([wanted] * 2))
        wanted = defined(lambda q, k, length=length: k < length, 6, 8)
        np.testing.assert_array_equal(open_queries[b], np.stack([wanted] * 2))
    positions = allowed(masks.Lengths(5, 12), 3, 4, query=range(10, 13), key=range(2, 6))[0]
    np.testing.assert_array_equal(positions, defined(lambda q, k: k < 5 and q < 12, range(10, 13), range(2, 6)))


def test_two_batch_axes():
    keys = np.array([[1, 4, 2], [0, 5, 3]])
    found = allowed(masks.Lengths(keys), 2, 5, (2, 3), 1)
    np.testing.assert_array_equal(found.sum((-1, -2, -3)), keys * 2)
    inner = allowed(masks.Lengths(keys[0]), 2, 5, (2, 3), 1)
    np.testing.assert_array_equal(inner.sum((-1, -2, -3)), np.stack([keys[0]] * 2) * 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.SameSegment(3), ("`query_ids`", "[batch..., length]")),
        (lambda: masks.SameSegment(jnp.array(3)), ("`query_ids`", "one id for each token")),
        (lambda: masks.SameSegment(IDS.astype(float)), ("`query_ids`", "float64")),
        (lambda: masks.SameSegment(IDS, KEYS > 0), ("`key_ids`", "bool")),
        (lambda: masks.SameSegment(np.array([2**40])), ("`query_ids`", "int32")),
        (lambda: masks.SameSegment(IDS, padding_id=0.5), ("`padding_id`", "0.5")),
        (lambda: masks.SameSegment(IDS, padding_id=IDS[0]), ("`padding_id`", "(7,)")),
        (lambda: masks.Lengths(-1), ("`key_lengths`", "-1")),
        (lambda: masks.Lengths(np.array([1, 2]), np.array([0, -4])), ("`query_lengths`", "-4")),
        (lambda: masks.Lengths(None), ("`key_lengths`", "None")),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (masks.SameSegment(IDS[:, :6], KEYS), "SameSegment.query_ids"),
        (masks.SameSegment(IDS), "SameSegment.key_ids"),
        (masks.SameSegment(IDS[[0, 1, 0]], KEYS), "SameSegment.query_ids"),
        (masks.Lengths(np.array([1, 2, 3])), "Lengths.key_lengths"),
    ],
)
def test_arrays_that_do_not_fit_the_call(mask, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        allowed(mask, 7, 5, (2,), 1)
