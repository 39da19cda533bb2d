"""Memorizing attention: exact search, the order of the ring buffer, and both combinations with local attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

import jattn
from jattn.variants.memory import Memorizing, empty_ring_buffer, memorizing, ring_buffer_attention, write_ring_buffer


def ring_of(keys, values, size):
    return write_ring_buffer(empty_ring_buffer(keys, values, size), keys, values)


def truth(query, keys, values, top_k):
    """Attention over the top_k of each query head, head by head."""
    heads, group = query.shape[1], query.shape[1] // keys.shape[1]
    out = np.zeros((len(query), heads, values.shape[-1]))
    for i, h in np.ndindex(len(query), heads):
        scores = keys[:, h // group] @ query[i, h]
        best = np.argsort(-scores)[:top_k]
        weights = np.exp(scores[best] / np.sqrt(query.shape[-1]))
        out[i, h] = weights / weights.sum() @ values[best, h // group]
    return out


@pytest.mark.parametrize(
    ("kv_heads", "block"),
    [
        (2, 4),
        *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((1, 4), (4, 4), (1, 99), (2, 99), (4, 99))),
    ],
)
def test_it_attends_the_largest_products_exactly(kv_heads, block, monkeypatch):
    monkeypatch.setattr(memorizing, "BLOCK", block)
    query, keys, values = normal(0, (3, 4, 5), (11, kv_heads, 5), (11, kv_heads, 2))
    ring = ring_of(keys, values, 13)
    check(
        lambda query: ring_buffer_attention(query, ring, top_k=3).out,
        lambda query: truth(query, keys.astype(float), values.astype(float), 3),
        query,
    )


def test_all_keys_are_plain_attention_and_merge_with_others():
    query, keys, values = normal(1, (2, 3, 2, 4), (2, 9, 2, 4), (2, 9, 2, 4))

    @jax.jit
    def run(query, keys, values):
        far = ring_buffer_attention(query, ring_of(keys[:, :6], values[:, :6], 6), top_k=6)
        near = jattn.partial_attention(query, keys[:, 6:], values[:, 6:])
        attended = (jattn.attention(query, keys[:, :n], values[:, :n]) for n in (6, 9))
        return far.out, jattn.merge(near, far).out, *attended

    far, both, first, whole = run(query, keys, values)
    close(far, first, 1e-5)
    close(both, whole, 1e-5)


@pytest.mark.parametrize("lengths", [(3, 3, 3), (1, 6, 2), (9,), (4, 5)])
def test_the_ring_keeps_the_newest(lengths):
    keys, values = normal(2, (2, 9, 1, 3), (2, 9, 1, 2))
    ring, start = empty_ring_buffer(keys, values, 5), 0
    for length in lengths:
        ring = jax.jit(write_ring_buffer)(ring, keys[:, start : start + length], values[:, start : start + length])
        start += length
    assert int(ring.written) == 9
    places = np.arange(4, 9) % 5
    np.testing.assert_array_equal(ring.keys[:, places], keys[:, 4:])
    np.testing.assert_array_equal(ring.values[:, places], values[:, 4:])


def test_unwritten_places_are_not_found():
    query, keys, values = normal(3, (2, 1, 4), (2, 1, 4), (2, 1, 4))
    empty = empty_ring_buffer(keys, values, 8)
    run = jax.jit(lambda query, ring: ring_buffer_attention(query, ring, top_k=4))
    nothing = run(query, empty)
    np.testing.assert_array_equal(nothing.out, 0)
    np.testing.assert_array_equal(nothing.lse, -np.inf)
    some = run(query, write_ring_buffer(empty, keys, values))
    close(some.out, truth(query, keys, values, 2), 1e-5)
    gradient = jax.jit(jax.grad(lambda q: run(q, empty).out.sum()))(query)
    np.testing.assert_array_equal(gradient, 0)


def test_a_ring_that_turned_is_found_whole_and_once():
    """Blocks that do not divide it: places behind its end are nobody's, however much was written."""
    query, keys, values = normal(8, (3, 2, 4), (19, 2, 4), (19, 2, 3))
    query[0] = keys[13]  # in the last place, the 7th, and found first
    ring = ring_of(keys, values, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorizing, "BLOCK", 4)
        for top_k in (3, 7):
            got = jax.jit(lambda query, ring, top_k=top_k: ring_buffer_attention(query, ring, top_k=top_k).out)(
                query, ring
            )
            close(got, truth(query, keys[12:], values[12:], top_k), 1e-5)


def test_no_gradient_into_the_ring():
    query, keys, values = normal(4, (2, 1, 4), (6, 1, 4), (6, 1, 4))

    def loss(query, keys, values):
        return jnp.sin(ring_buffer_attention(query, ring_of(keys, values, 6), top_k=2).out).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(query, keys, values)
    assert np.any(gradients[0])
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)
    # It is a constant both when it is written and when it is read.
    ring = ring_of(jnp.asarray(keys), jnp.asarray(values), 6)
    written = jax.grad(lambda k, v, old: sum(x.sum() for x in write_ring_buffer(old, k, v)[:2]), (0, 1), allow_int=True)
    for gradient in written(keys[:2], values[:2], ring):
        np.testing.assert_array_equal(gradient, 0)
    kept = jax.grad(lambda old: write_ring_buffer(ring._replace(keys=old), keys[:2], values[:2]).keys.sum())(ring.keys)
    np.testing.assert_array_equal(kept, 0)
    read = jax.grad(
        lambda k, v: ring_buffer_attention(query, ring._replace(keys=k, values=v), top_k=2).out.sum(), (0, 1)
    )
    for gradient in jax.jit(read)(ring.keys, ring.values):
        np.testing.assert_array_equal(gradient, 0)


def layer_truth(parameters, inputs, combine, size, top_k, segment, key_inputs=None, window=99):
    """One example, query by query."""
    sources = {"query": inputs, "key": inputs if key_inputs is None else key_inputs, "value": inputs}
    p = jax.tree.map(lambda x: np.asarray(x, float), parameters)
    q, k, v = (np.einsum("tf,fhd->thd", source, p[name]["kernel"]) for name, source in sources.items())
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    out = np.zeros_like(v)
    for i, h in np.ndindex(*v.shape[:2]):
        start = i // segment * segment
        scores = k[:, h] @ q[i, h] * p["scale"][h]
        past = np.arange(max(start - size, 0), start)
        far = past[np.argsort(-scores[past])[:top_k]]
        near = np.arange(max(start, i - window), i + 1)

        def read(places, scores=scores, h=h):
            weights = np.exp(scores[places])
            return weights / weights.sum() @ v[places, h]

        if combine == "joint" or not len(far):
            out[i, h] = read(np.concatenate([far, near]))
        else:
            gate = 1 / (1 + np.exp(-p["gate"][h]))
            out[i, h] = gate * read(far) + (1 - gate) * read(near)
    return np.einsum("thd,hdf->tf", out, p["out"]["kernel"])


@pytest.mark.parametrize("combine", ["gated", pytest.param("joint", marks=pytest.mark.exhaustive)])
def test_layer_is_its_definition_over_a_ring_that_turns(combine):
    layer = Memorizing(6, heads=2, memory_size=5, top_k=2, combine=combine)
    parameters = layer.init(jax.random.key(0))
    if combine == "gated":
        parameters["gate"] = jnp.array([0.5, -1.0])
    (inputs,) = normal(5, (2, 12, 6))
    memory, parts, run = None, [], jax.jit(layer)
    for start in range(0, 12, 3):
        out, memory = run(parameters, inputs[:, start : start + 3], memory)
        parts.append(out)
    out = np.concatenate(parts, 1)
    for b in range(2):
        close(out[b], layer_truth(parameters, inputs[b].astype(float), combine, 5, 2, 3), 1e-5)


def test_layer_with_keys_of_its_own_and_a_window():
    """The mask is of the local attention, besides causality."""
    layer = Memorizing(6, heads=2, memory_size=5, top_k=2)
    parameters = layer.init(jax.random.key(0))
    inputs, sources = normal(9, (8, 6), (8, 6))
    memory, parts = None, []
    run = jax.jit(lambda x, y, memory: layer(parameters, x, memory, key_inputs=y, mask=lambda q, k: q - k <= 1))
    for start in (0, 4):
        out, memory = run(inputs[start : start + 4], sources[start : start + 4], memory)
        parts.append(out)
    want = layer_truth(parameters, inputs.astype(float), "gated", 5, 2, 4, sources.astype(float), 1)
    close(np.concatenate(parts), want, 1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("combine", ["gated", pytest.param("joint", marks=pytest.mark.exhaustive)])
def test_as_a_module(combine):
    layer = Memorizing(6, heads=2, memory_size=8, top_k=2, combine=combine)
    first, then = (jnp.asarray(x) for x in normal(6, (2, 4, 6), (2, 4, 6)))
    _, memory = jax.jit(layer)(layer.init(jax.random.key(0)), first)
    check_layer(layer, then, memory)


@pytest.mark.exhaustive
def test_it_is_causal_and_bfloat16_stays():
    layer = Memorizing(6, heads=2, memory_size=8, top_k=2)
    parameters = layer.init(jax.random.key(0))
    first, then = (jnp.asarray(x) for x in normal(7, (4, 6), (4, 6)))
    _, memory = jax.jit(layer)(parameters, first)
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda x: layer(parameters, x, memory)[0]))(then))
    for i in range(3):
        np.testing.assert_array_equal(jacobian[i, :, i + 1 :], 0)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters)
    out, ring = jax.jit(layer)(low, first.astype(jnp.bfloat16))
    assert out.dtype == ring.keys.dtype == jnp.bfloat16


def test_bad_input_is_named():
    query, keys = jnp.ones((2, 1, 4)), jnp.ones((6, 1, 4))
    with pytest.raises(ValueError, match="`top_k` must be at most the size of the memory, 6; got 7"):
        ring_buffer_attention(query, ring_of(keys, keys, 6), top_k=7)
    with pytest.raises(ValueError, match="`memory_size` must be at least `top_k` = 32; got 31"):
        Memorizing(6, heads=2, memory_size=31)
    with pytest.raises(ValueError, match="`combine` must be one of 'gated', 'joint'"):
        Memorizing(6, heads=2, memory_size=64, combine="added")
    with pytest.raises(ValueError, match="`size` must be a positive int"):
        empty_ring_buffer(keys, keys, 0)
    with pytest.raises(ValueError, match="`query` must have a multiple of the heads of the memory; got 3 and 2"):
        ring_buffer_attention(jnp.ones((2, 3, 4)), ring_of(jnp.ones((6, 2, 4)), jnp.ones((6, 2, 4)), 6), top_k=1)
    with pytest.raises(ValueError, match=r"`key` must have shape \[..., length, kv_heads, dim\] with dim = 4"):
        write_ring_buffer(ring_of(keys, keys, 6), jnp.ones((2, 1, 3)), jnp.ones((2, 1, 4)))
    layer = Memorizing(6, heads=2, memory_size=8, top_k=2)
    with pytest.raises(ValueError, match="`similarity` must be left out: it is the cosine times the layer's `scale`"):
        layer(layer.init(jax.random.key(0)), jnp.ones((3, 6)), similarity=jattn.similarities.Dot())
    _, memory = jax.jit(layer)(layer.init(jax.random.key(0)), jnp.ones((3, 6)))
    with pytest.raises(ValueError, match="`memory` must have 9 places"):
        Memorizing(6, heads=2, memory_size=9, top_k=2)(layer.init(jax.random.key(0)), jnp.ones((3, 6)), memory)
