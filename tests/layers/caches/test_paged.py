"""Pages: which sequence has which, and sequences that share pages."""

from typing import Any

import jax
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import masks, normalizers, scores
from jattn.layers import caches

CAUSAL: Any = dict(mask=masks.Causal(), implementation="reference")
SPEC = caches.Paged(pages=6, page_size=2, slots=4, block=2)


def random(seed, *shape) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_pages_are_handed_out_and_taken_back():
    pool = caches.PageAllocator(pages=6, page_size=2)
    first, second = pool.allocate(3), pool.allocate()
    pool.reserve(second, 1)
    pool.reserve(second, 2)  # it has room for them
    pool.reserve(first, 5)
    np.testing.assert_array_equal(pool.table([second, first], 3), [[2, -1, -1], [0, 1, 3]])
    third, copies = pool.fork(first, 3)
    assert copies == [(1, 4)]
    fourth, copies = pool.fork(first, 4)
    assert copies == []
    np.testing.assert_array_equal(pool.table([third, fourth], 2), [[0, 4], [0, 1]])
    for asked in (lambda: pool.allocate(5), lambda: pool.reserve(second, 7)):
        with pytest.raises(ValueError, match=r"the pool has 1 of 6 pages left, and \d are needed: `free`"):
            asked()
    assert pool.free_pages == 1
    pool.free(first)
    assert pool.free_pages == 2  # the others are shared
    pool.free(third)
    pool.free(fourth)
    assert pool.free_pages == 5
    np.testing.assert_array_equal(pool.table([second, pool.allocate(4)], 2), [[2, -1], [0, 1]])


def test_bad_requests_are_named():
    pool = caches.PageAllocator(pages=6, page_size=2)
    one = pool.allocate(3)
    cache = SPEC.create((1,), 2, 4, 3)
    for call, message in (
        (lambda: pool.free(7), r"`sequence` must be one of \[0\], allocated and not freed; got 7"),
        (lambda: pool.allocate(-1), "`tokens` must be an int of at least 0"),
        (lambda: pool.fork(one, 5), "`length` must be at most 4, which sequence 0 has pages for; got 5"),
        (lambda: pool.table([one], 1), "`slots` must be at least 2, the pages of sequence 0; got 1"),
        (lambda: cache.with_table(np.zeros((1, 3), int)), r"`table` must be integers of shape \(1, 4\)"),
        (lambda: cache.with_table(np.full((1, 4), 6)), "`table` must hold pages from 0 to 5, or -1 for none; got 6"),
        (lambda: cache.with_table(cache.table, np.zeros(2, int)), r"`lengths` must be integers of shape \(1,\)"),
        (lambda: cache.append(random(0, 1, 1, 2, 4), random(0, 1, 1, 2, 3)), "the 0 places of the cache.*with_table"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_fork_goes_on_by_itself():
    """Two sequences share three tokens, then differ; a place in the batch is used again for a new sequence."""
    pool = caches.PageAllocator(SPEC.pages, SPEC.page_size)
    first = pool.allocate(3)
    key, value, query = random(0, 2, 5, 2, 4), random(1, 2, 5, 2, 3), random(2, 2, 5, 4, 4)
    key[1, :3], value[1, :3] = key[0, :3], value[0, :3]
    cache = SPEC.create((2,), 2, 4, 3)
    cache = cache.with_table(pool.table([first, pool.allocate()], SPEC.slots))
    only_first = np.arange(3) < np.array([[3], [0]])
    append = jax.jit(lambda cache, *arrays, valid: cache.append(*arrays, valid=valid)[1])
    cache = append(cache, key[:, :3], value[:, :3], valid=only_first)
    second, copies = pool.fork(first, 3)
    pool.reserve(first, 5)
    pool.reserve(second, 5)
    cache = cache.with_table(pool.table([first, second], SPEC.slots), np.array([3, 3])).with_copies(copies)

    @jax.jit
    def both(cache):
        view, cache = cache.append(key[:, 3:], value[:, 3:])
        want = jattn.attention(query, key, value, **CAUSAL)
        return view.attend(query[:, 3:], **CAUSAL), want, cache

    got, want, cache = both(cache)
    np.testing.assert_allclose(got, want[:, 3:], rtol=1e-5, atol=1e-6)
    cache = cache.with_table(cache.table, np.array([0, 5]))
    cache = append(cache, key[:, :1], value[:, :1], valid=np.array([[True], [False]]))
    np.testing.assert_array_equal(cache.lengths, [1, 5])
    np.testing.assert_array_equal(cache.keys[cache.table[0, 0], 0], key[0, 0])
    assert not cache.overflowed.any()


@pytest.mark.parametrize("name", rows(["sink", "dropout", "keys", "sigmoid"], ["dropout", "keys"]))
def test_pieces_in_blocks_and_not(name):
    """What needs care when keys come in blocks gives what it gives over the whole."""
    pool = caches.PageAllocator(SPEC.pages, SPEC.page_size)
    key, value, query = random(0, 5, 2, 4), random(1, 5, 2, 3), random(2, 5, 4, 4)
    pieces: Any = {
        "sink": dict(normalizer=normalizers.Softmax(np.array([0.5, -1, 2, 0], np.float32))),
        "dropout": dict(dropout=jattn.Dropout(0.5, jax.random.key(0))),
        "keys": dict(scores=scores.Bias(random(3, 1, 1, 8))),
        "sigmoid": dict(normalizer=normalizers.Sigmoid()),
    }[name]
    cache = SPEC.create((), 2, 4, 3).with_table(pool.table([pool.allocate(5)], SPEC.slots)[0])
    whole: Any = dict(scores=scores.Bias(random(3, 1, 1, 8)[..., :5])) if name == "keys" else pieces

    @jax.jit
    def both(cache):
        view, _ = cache.append(key, value)
        return view.attend(query, **CAUSAL, **pieces), jattn.attention(query, key, value, **CAUSAL, **whole)

    got, want = both(cache)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
