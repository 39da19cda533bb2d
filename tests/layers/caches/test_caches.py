"""Every cache: attention over its view, in chunks of any sizes, equals attention over the whole sequence."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import implementations, masks, scores
from jattn.layers import caches

LENGTH, HEADS, KV_HEADS = 7, 4, 2
WINDOW = masks.SlidingWindow(2, 0)
PIECES = {
    "causal": dict(mask=masks.Causal()),
    "window": dict(mask=WINDOW),
    "sinks and a window": dict(mask=masks.Causal() & (WINDOW | masks.Sinks(1))),
    "ALiBi": dict(mask=masks.Causal(), scores=scores.ALiBi.standard(HEADS)),
    "functions of batch and head": dict(
        mask=masks.of(lambda b, h, q, k: (k <= q) & (q - k < 3 + b + h)),
        scores=scores.of(lambda s, q, k: s - 0.1 * (q - k) ** 2 / (1 + q)),
    ),
}
PLACES = LENGTH + 2
KINDS = {
    "contiguous": (caches.Contiguous(PLACES), masks.Causal()),
    "rolling": (caches.Rolling(3), masks.SlidingWindow(2, None)),
    "rolling with sinks": (caches.Rolling(2, sinks=3), masks.SlidingWindow(1, None) | masks.Sinks(3)),
    "paged": (caches.Paged(pages=11, page_size=3, slots=4, block=5), masks.Causal()),
}
"""A cache, and the mask that it adds to those of the call.

There are not as many sinks as a window has: a place counted without them would be the same one.
"""


@pytest.fixture(autouse=True)
def no_rank_is_promoted():
    with jax.numpy_rank_promotion("raise"):
        yield


def random(seed, batch=(2,), length=LENGTH) -> list[Any]:
    numbers = np.random.default_rng(seed)
    shapes = (*batch, length, HEADS, 4), (*batch, length, KV_HEADS, 4), (*batch, length, KV_HEADS, 3)
    return [numbers.normal(size=shape).astype(np.float32) for shape in shapes]


TILED = ("functions of batch and head",)
"""The pieces that go through a plan of tiles, which costs the compiler more."""


def attend_to_all(attend, query):
    tiled = implementations.Tiled(2, 4)
    return [
        attend(query, **pieces, implementation=tiled if name in TILED else "reference")
        for name, pieces in PIECES.items()
    ]


@jax.jit
def decode(cache, query, key, value, valid=None):
    view, cache = cache.append(key, value, valid=valid)
    return attend_to_all(view.attend, query), cache


@functools.partial(jax.jit, static_argnames="own")
def whole(query, key, value, own):
    def attend(query, mask, **pieces):
        return jattn.attention(query, key, value, mask=mask & own, **pieces)

    return attend_to_all(attend, query)


def create(spec, batch, dtype=jnp.float32):
    """An empty cache; of a paged one, every sequence has pages, which do not follow one another."""
    cache = spec.create(batch, KV_HEADS, 4, 3, dtype)
    if isinstance(spec, caches.Paged):
        pool = caches.PageAllocator(spec.pages, spec.page_size)
        sequences = [pool.allocate() for _ in range(int(np.prod(batch)))]
        for tokens in range(1, PLACES + 1):
            for sequence in sequences:
                pool.reserve(sequence, tokens)
        cache = cache.with_table(pool.table(sequences, spec.slots).reshape(cache.table.shape))
    return cache


each_kind = pytest.mark.parametrize("kind", rows(KINDS, always=("contiguous", "rolling with sinks", "paged")))
one_kind = pytest.mark.parametrize("kind", rows(KINDS, always=("contiguous",)))
"""For what layers/test_decoding.py tests with the other kinds in every run."""
SCHEDULES = [
    [([2, 0, 3], "left"), "step", ([3, 1, 0], "right"), ([0, 3, 1], "left"), "step"],
    [([0, 3, 2], "right"), ([3, 1, 1], "right"), "step", "step", "step"],
    ["step"] * 6 + [([1, 0, 1], "left")],
]
"""Chunks of three places, as many of them tokens in each of three sequences, the others padding; and single tokens."""


@pytest.mark.parametrize("kind", rows(KINDS, always=("paged",)))
def test_chunks_of_any_sizes_give_the_whole(kind):
    """Also of sequences of different lengths, padded on either side, with NaN in the padding."""
    spec, own = KINDS[kind]
    arrays = random(0, (3,))
    wants = whole(*arrays, own)
    for schedule in SCHEDULES:
        cache, seen = create(spec, (3,)), np.zeros(3, int)
        for chunk in schedule:
            counts, side = ([1, 1, 1], None) if chunk == "step" else chunk
            valid = np.arange(3 if side else 1) < np.array(counts)[:, None]
            valid = valid[:, ::-1] if side == "left" else valid
            given = [np.full((*valid.shape, *one.shape[2:]), np.nan, np.float32) for one in arrays]
            for example, count in enumerate(counts):
                for part, one in zip(given, arrays, strict=True):
                    part[example, valid[example]] = one[example, seen[example] : seen[example] + count]
            positions = cache.positions(valid.shape[1], valid)
            outs, cache = decode(cache, *given, valid if side else None)
            for example, count in enumerate(counts):
                places = np.arange(seen[example], seen[example] + count)
                np.testing.assert_array_equal(positions[example][valid[example]], places)
                for name, got, want in zip(PIECES, outs, wants, strict=True):
                    told: Any = dict(rtol=1e-5, atol=1e-6, err_msg=name)
                    np.testing.assert_allclose(got[example][valid[example]], want[example, places], **told)
                    np.testing.assert_array_equal(got[example][~valid[example]], 0)
            seen += counts
        np.testing.assert_array_equal(cache.lengths, seen)


@pytest.mark.parametrize("kind", rows(["contiguous", "paged"], ["contiguous"]))
def test_a_cache_that_is_full(kind):
    """Refused where lengths are known; where they are traced, NaN for the sequences concerned, from then on."""
    spec, _ = KINDS[kind]
    query, key, value = random(2)
    cache = create(spec, (2,))
    valid = np.ones((2, LENGTH), bool)
    valid[1, 2:] = False
    _, cache = cache.append(key, value, valid=valid)
    with pytest.raises(ValueError, match=r"`key` must end within the 9 places of the cache; .* has 10\."):
        cache.append(key[:, :3], value[:, :3])

    @jax.jit
    def step(cache):
        view, cache = cache.append(key[:, :3], value[:, :3])
        return view.attend(query[:, :3], mask=masks.Causal(), implementation="reference"), cache

    for _ in range(2):
        out, cache = step(cache)
        assert np.isnan(out[0]).all()
        assert np.isfinite(out[1]).all()
    with pytest.raises(ValueError, match="places of the cache"):
        jax.eval_shape(lambda cache: cache.append(*[np.zeros((2, 13, 2, size), np.float32) for size in (4, 3)]), cache)


@one_kind
def test_transforms(kind):
    """Gradients of prompt and step are those of the whole; without a batch, and mapped over one."""
    spec, own = KINDS[kind]
    arrays = random(3)
    weigh = np.random.default_rng(4).normal(size=(2, LENGTH, HEADS, 3)).astype(np.float32)
    mask = masks.Causal() & own

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(in_chunks, arrays):
        def loss(*arrays):
            if not in_chunks:
                return (jattn.attention(*arrays, mask=mask, implementation="reference") * weigh).sum()

            def example(*arrays):  # without a batch axis
                cache, outs = create(spec, ()), []
                for start, end in ((0, 5), (5, 6), (6, 7)):
                    query, key, value = (one[start:end] for one in arrays)
                    view, cache = cache.append(key, value)
                    outs.append(view.attend(query, mask=masks.Causal(), implementation="reference"))
                return jnp.concatenate(outs)

            return (jax.vmap(example)(*arrays) * weigh).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)

    for got, want in zip(*(jax.tree.leaves(gradients(one, arrays)) for one in (True, False)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", rows(KINDS, always=("paged",)))
def test_half_precision_and_what_is_kept(kind):
    """A bfloat16 cache holds what was put into it, rounded; a view without new tokens is what the last ones saw."""
    spec, own = KINDS[kind]
    query, key, value = random(5)
    cache = create(spec, (2,), jnp.bfloat16)
    assert {cache.keys.dtype, cache.values.dtype} == {jnp.dtype(jnp.bfloat16)}

    @jax.jit
    def both(cache):
        how: Any = dict(implementation="reference")
        _, cache = cache.append(key[:, :5], value[:, :5])
        out = cache.view().attend(query[:, 4:5], query_positions=np.array([4]), **how)  # no mask: all tokens so far
        rounded = [one[:, :5].astype(jnp.bfloat16) for one in (key, value)]
        return out[:, 0], jattn.attention(query[:, :5], *rounded, mask=masks.Causal() & own, **how)[:, 4]

    got, want = (one.astype(np.float32) for one in both(cache))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", rows(KINDS, ["paged"]))
def test_a_cache_in_an_exported_function(kind):
    pytest.importorskip("flatbuffers", reason="jax.export serializes with it")
    spec, _ = KINDS[kind]
    key, value = random(8)[1:]
    exported = jax.export.export(jax.jit(lambda cache: cache.append(key, value)[1]))(create(spec, (2,)))
    again = jax.export.deserialize(exported.serialize()).call(create(spec, (2,)))
    assert jax.tree.structure(again) == jax.tree.structure(create(spec, (2,)))
    np.testing.assert_array_equal(again.lengths, [LENGTH] * 2)


@pytest.mark.parametrize("kind", rows(KINDS, always=("paged",)))
def test_split_over_devices(kind):
    """Examples or heads over Explicit axes: the cache is laid out as its tokens. Devices do not share pages."""
    spec, _ = KINDS[kind]
    arrays = random(7, (2,), 2)
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Explicit,))

    @jax.jit
    def attend(cache, query, key, value):
        view, after = cache.append(key, value)
        return view.attend(query, mask=masks.Causal(), implementation="reference"), after

    want, _ = attend(create(spec, (2,)), *arrays)
    with jax.set_mesh(mesh):
        cache = create(spec, (2,))
        for axes in (("device",), (None, None, "device")):
            placed = [jax.device_put(one, jax.NamedSharding(mesh, jax.P(*axes))) for one in arrays]
            if kind == "paged" and axes == ("device",):
                with pytest.raises(ValueError, match="`key` must not have its batch split over devices"):
                    attend(cache, *placed)
                continue
            got, after = attend(cache, *placed)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
            assert after.keys.sharding.spec == jax.P(*axes, *[None] * (4 - len(axes)))


@each_kind
def test_bad_arguments_are_named(kind):
    spec, _ = KINDS[kind]
    _, key, value = random(6)
    for arguments, message in (
        (dict(batch=2), "`batch` must be a tuple"),
        (dict(kv_heads=0), "`kv_heads` must be a positive int"),
        (dict(v_dim=-1), "`v_dim` must be an int of at least 0"),
        (dict(dtype=int), "`dtype` must be floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            spec.create(**{**dict(batch=(2,), kv_heads=2, k_dim=4), **arguments})
    cache = spec.create((2,), KV_HEADS, 4, 3)
    for arguments, message in (
        ((key, key), "`value` must have shape .* with v_dim = 3"),
        ((key[..., :1, :], value), "`key` must have shape .* with kv_heads = 2"),
        ((key[0], value[0]), r"`key` must have the batch axes \(2,\) of the cache"),
        ((key, value, np.ones((2, 7))), r"`valid` must be booleans of shape \(2, 7\) or \(7,\)"),
        ((key, value, np.ones((2, 6), bool)), r"`valid` must be booleans"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.append(*arguments[:2], valid=arguments[2] if len(arguments) == 3 else None)
    with pytest.raises(ValueError, match="`new` must be an int of at least 0"):
        cache.positions(-1)


def test_bad_specs_are_named():
    for make, message in (
        (lambda: caches.Contiguous(0), "`length` must be a positive int"),
        (lambda: caches.Rolling(0), "`window` must be a positive int"),
        (lambda: caches.Rolling(2, -1), "`sinks` must be an int of at least 0"),
        (lambda: caches.Paged(1, 2, 0), "`slots` must be a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert hash(caches.Contiguous(3)) == hash(caches.Contiguous(3))
