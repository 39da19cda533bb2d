"""Functions with FlexAttention's signatures: batch and head indices, and arrays indexed by them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jattn
from jattn import masks, scores
from jattn.ops.attention.call import Pieces, prepare
from jattn.parallel import Heads

BATCH, HEADS, LENGTH = 2, 4, 12
rng = np.random.default_rng(0)
QUERY, KEY, VALUE = (jnp.asarray(rng.normal(size=(BATCH, LENGTH, HEADS, 4)), jnp.float32) for _ in range(3))
DOCUMENT = np.sort(rng.integers(0, 3, (BATCH, LENGTH)), axis=1)
OFFSET = np.array([0, 3, 1, 5])
TABLE = jnp.asarray(rng.normal(size=(HEADS, 2 * LENGTH)), jnp.float32)
PAIRS = np.arange(LENGTH)[:, None], np.arange(LENGTH)


def mask_mod(b, h, q_idx, kv_idx):
    return (DOCUMENT[b, q_idx] == jnp.asarray(DOCUMENT)[b, kv_idx]) & (q_idx - kv_idx >= -OFFSET[h])


def score_mod(table):
    return lambda score, b, h, q_idx, kv_idx: score + table[h, q_idx - kv_idx + LENGTH] + 0.1 * b


def dense(rows=slice(None), heads=slice(None)):
    """The same, as arrays of all pairs."""
    q, k = PAIRS
    allowed = (DOCUMENT[:, None, :, None] == DOCUMENT[:, None, None, :]) & (q - k >= -OFFSET[:, None, None])
    bias = TABLE[:, q - k + LENGTH] + 0.1 * np.arange(BATCH)[:, None, None, None]
    pieces = {"mask": masks.Dense(allowed[rows, heads]), "scores": scores.Bias(bias[rows, heads].astype(jnp.float32))}
    return jattn.attention(QUERY[rows, :, heads], KEY[rows, :, heads], VALUE[rows, :, heads], **pieces)


@pytest.mark.parametrize("implementation", ["tiled", pytest.param("reference", marks=pytest.mark.exhaustive)])
def test_indices_are_those_of_the_arrays(implementation):
    def attend(table):
        return jattn.attention(
            QUERY, KEY, VALUE, mask=mask_mod, scores=[score_mod(table)], implementation=implementation
        )

    np.testing.assert_allclose(jax.jit(attend)(TABLE), dense(), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda table: (attend(table) ** 2).sum()))(TABLE)

    def by_bias(bias):
        pieces = {"mask": mask_mod, "scores": scores.Bias(bias[:, PAIRS[0] - PAIRS[1] + LENGTH])}
        more = scores.of(lambda s, b, h, q, k: s + 0.1 * b)
        out = jattn.attention(QUERY, KEY, VALUE, mask=pieces["mask"], scores=(pieces["scores"], more))
        return (out**2).sum()

    np.testing.assert_allclose(gradient, jax.jit(jax.grad(by_bias))(TABLE), atol=1e-4)


def test_arguments_tell_which_signature_it_is():
    plain, indexed = masks.of(lambda q, k: k <= q), masks.of(lambda b, h, q, k: k <= q)
    with_default = masks.of(lambda q, k, width=3: q - k < width)
    partial = masks.of(functools.partial(lambda width, b, h, q, k: q - k < width, 3))
    out = [jattn.attention(QUERY, KEY, VALUE, mask=mask) for mask in (plain, indexed, with_default, partial)]
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[2], out[3])
    assert masks.of(jnp.greater_equal).picture(4, 4) == masks.Causal().picture(4, 4)
    for wrong in (lambda q: q > 0, lambda b, q, k: q > k, lambda: True, lambda s, b, h, q, k: q > k):
        with pytest.raises(ValueError, match=r"`function` must take \(query, key\) or \(batch, head, query, key\)"):
            masks.of(wrong)
    with pytest.raises(ValueError, match=r"\(score, query, key\) or \(score, batch, head, query, key\)"):
        scores.of(lambda q, k: q - k)


def test_indices_that_are_not_read_cost_nothing():
    """No plan and no loop of its own for each head; and the call may have any batch axes."""
    mask = masks.of(lambda b, h, q, k: k <= q)
    assert not jax.tree.leaves(mask.indexed((BATCH,), HEADS))
    by_head = masks.of(lambda b, h, q, k: q - k <= h).indexed((), HEADS)
    assert [leaf.shape for leaf in jax.tree.leaves(by_head)] == [(HEADS,)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("axes", [pytest.param(("model",), marks=pytest.mark.exhaustive), ("data", "model")])
def test_heads_on_devices_keep_their_indices(axes):
    mesh = jax.make_mesh((2,) * len(axes), axes)
    heads = Heads("model", mesh=mesh, batch="data" if "data" in axes else ())
    out = heads.attention(QUERY, KEY, VALUE, mask=mask_mod, scores=score_mod(TABLE))
    np.testing.assert_allclose(out, dense(), atol=1e-5)


@pytest.mark.exhaustive
def test_sharded_arrays_keep_their_indices():
    """A mesh with explicit axes in the context, where the functions are traced; and outside of it."""
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    place = jax.NamedSharding(mesh, P("data", None, "model", None))
    with jax.set_mesh(mesh):
        pieces = {"mask": masks.of(mask_mod), "scores": scores.of(score_mod(TABLE))}
        split = [jax.device_put(x, place) for x in (QUERY, KEY, VALUE)]
        out = jax.jit(lambda *arrays: jattn.attention(*arrays, **pieces))(*split)
    np.testing.assert_allclose(out, dense(), atol=1e-5)
    assert out.sharding.spec[0] == "data"
    np.testing.assert_allclose(jattn.attention(QUERY, KEY, VALUE, **pieces), dense(), atol=1e-5)


@pytest.mark.exhaustive
def test_unknown_indices_are_refused_and_given_ones_are_right():
    def attend(query, key, value, **given):
        mask = masks.of(mask_mod, **given)
        return jattn.attention(query, key, value, mask=mask, scores=scores.of(score_mod(TABLE), **given))

    one = (QUERY[0], KEY[0], VALUE[0])
    with pytest.raises(ValueError, match="one batch axis of the call; this call has the batch axes \\(\\)"):
        attend(*one)
    with pytest.raises(ValueError, match=r"`jax.vmap` takes away the axis.*`masks.of\(function, examples=...\)`"):
        jax.vmap(attend)(QUERY, KEY, VALUE)
    mapped = jax.vmap(lambda q, k, v, i: attend(q, k, v, examples=i))(QUERY, KEY, VALUE, jnp.arange(BATCH))
    np.testing.assert_allclose(mapped, dense(), atol=1e-5)
    # A part of the heads, and a part of the batch.
    part = attend(QUERY[1:, :, 2:], KEY[1:, :, 2:], VALUE[1:, :, 2:], heads=[2, 3], examples=[1])
    np.testing.assert_allclose(part, dense(slice(1, None), slice(2, None)), atol=1e-5)

    mesh, split = jax.make_mesh((2,), ("model",)), P(None, None, "model")

    def sharded(function, **options):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, **options)
        return mapped(*(jax.device_put(x, jax.NamedSharding(mesh, split)) for x in (QUERY, KEY, VALUE)))

    for options in ({}, {"check_vma": False}):
        with pytest.raises(ValueError, match=r"not known inside `jax.shard_map`.*'model'.*heads=\.\.\."):
            sharded(attend, **options)

    def here(query, key, value):
        local = query.shape[-2]
        return attend(
            query, key, value, heads=jax.lax.axis_index("model") * local + jnp.arange(local), examples=np.arange(BATCH)
        )

    np.testing.assert_allclose(sharded(here), dense(), atol=1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"heads": 3}, r"`heads` must be integers \[heads\]"),
        ({"heads": [0.5]}, r"`heads` must be integers \[heads\]; got an array of dtype float64"),
        ({"examples": ["a"]}, r"`examples` must be integers \[batch...\]"),
    ],
)
def test_indices_are_integers(given, message):
    with pytest.raises(ValueError, match=message):
        masks.of(lambda b, h, q, k: k <= q, **given)
    with pytest.raises(ValueError, match="takes none"):
        masks.of(lambda q, k: k <= q, **given)


@pytest.mark.parametrize(
    "mask",
    [
        masks.SameSegment(jnp.asarray(DOCUMENT)),
        masks.of(lambda q, k: jnp.arange(LENGTH)[q] >= k),
        masks.SlidingWindow(jnp.array([1, 2, 3, 4]), 0),
    ],
    ids=["segments", "a function's array", "windows"],
)
def test_arrays_that_are_not_traced_are_known_inside_jit(mask):
    def explained(query):
        return jattn.explain_calls(lambda x: jattn.attention(x, x, x, mask=mask, key_positions=at), query)[0].plan

    at = jnp.arange(LENGTH)
    assert isinstance(explained(QUERY).states, np.ndarray)
    # Outside, other numbers must not compile again.
    assert not isinstance(
        prepare(QUERY, KEY, VALUE, Pieces(mask, key_positions=at))[0].pieces.key_positions, np.ndarray
    )
