"""Transformer-XL equals its equation with a table of distances, and segments equal the full pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

from jattn import masks, similarities
from jattn.ops.attention.implementations import Tiled
from jattn.variants.memory import TransformerXL, relative_attention

FREQUENCIES = 3


def table(offsets):
    """R_δ = [sin, cos] of every distance."""
    angles = offsets[..., None] * 10000.0 ** (-np.arange(FREQUENCIES) / FREQUENCIES)
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def dense(query, key, value, kernel, u, v, allowed):
    """The four terms of the paper, pair by pair; queries are at the last positions."""
    q_len, kv_len = len(query), len(key)
    offsets = (kv_len - q_len + np.arange(q_len))[:, None] - np.arange(kv_len)
    distance = np.einsum("ijf,fhd->ijhd", table(offsets), kernel)
    scores = np.einsum("ihd,jhd->hij", query + u, key) + np.einsum("ihd,ijhd->hij", query + v, distance)
    scores = np.where(allowed, scores / np.sqrt(query.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), value)


def call(query, key, value, kernel, u, v, **options):
    return relative_attention(query, key, value, position_kernel=kernel, content_bias=u, position_bias=v, **options)


def arrays(q_len=3, kv_len=5, seed=0):
    return normal(seed, (q_len, 2, 4), (kv_len, 2, 4), (kv_len, 2, 3), (2 * FREQUENCIES, 2, 4), (2, 4), (2, 4))


@pytest.mark.parametrize("implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), Tiled(2, 3)])
def test_relative_attention_is_its_definition(implementation):
    causal = np.tril(np.ones((3, 5), bool), 2)
    check(
        lambda *given: call(*given, mask=masks.Causal(), implementation=implementation),
        lambda *given: dense(*given, causal),
        *arrays(),
    )


def test_keys_after_the_query_have_distances_too():
    given = arrays(4, 4, seed=1)
    close(call(*given), dense(*given, np.ones((4, 4), bool)), 1e-5)


@pytest.mark.exhaustive
def test_only_distances_matter():
    given = arrays(4, 4, seed=2)
    want = call(*given)
    for shift in (7, 10**6):
        close(call(*given, query_positions=np.arange(4) + shift, key_positions=np.arange(4) + shift), want, 1e-5)
    moved = jnp.arange(4) + 7
    close(jax.jit(lambda at: call(*given, query_positions=at, key_positions=at))(moved), want, 1e-5)
    last = arrays(2, 4, seed=2)[:1]
    for keys in (np.arange(4) + 3, jnp.arange(4) + 3, [3, 4, 5, 6]):  # queries are at the last of them
        close(call(*last, *given[1:], key_positions=keys), call(*last, *given[1:]), 1e-5)


def test_it_skips_tiles_and_streams():
    query, key, value, kernel, u, v = arrays(65, 65, seed=3)
    near = masks.SlidingWindow(4, 0)
    value[:20] = np.nan
    out = call(query, key, value, kernel, u, v, mask=near, implementation=Tiled(8, 8))
    offsets = np.arange(65)[:, None] - np.arange(65)
    want = dense(query, key, np.nan_to_num(value), kernel, u, v, (offsets >= 0) & (offsets <= 4))
    close(out[24:], want[24:], 1e-5)


@pytest.mark.exhaustive
def test_bfloat16_and_empty_rows():
    given = [jnp.asarray(x, jnp.bfloat16) for x in arrays(4, 4, seed=4)]
    out = call(*given, mask=lambda q, k: k < q)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out[0], 0)
    want = dense(*[np.asarray(x, float) for x in given], np.tril(np.ones((4, 4), bool)))
    close(call(*given, mask=masks.Causal()), want, 2e-2)


def layer_and_inputs(memory_len, length=12):
    layer = TransformerXL(6, heads=2, memory_len=memory_len, head_dim=4)
    parameters = layer.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda x: x + rng.normal(scale=0.2, size=x.shape).astype(np.float32), parameters)
    (inputs,) = normal(5, (2, length, 6))
    return layer, parameters, jnp.asarray(inputs)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "sizes", [(5, 1, 6), *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ((4, 4, 4), (12,)))]
)
def test_segments_equal_the_full_pass_when_memory_covers_the_context(sizes):
    layer, parameters, inputs = layer_and_inputs(12)
    run, parts, memory, start = jax.jit(layer), [], None, 0
    want, _ = run(parameters, inputs)
    for size in sizes:
        out, memory = run(parameters, inputs[:, start : start + size], memory)
        parts.append(out)
        start += size
    close(np.concatenate(parts, 1), want, 1e-5)
    assert int(memory.filled) == 12


@pytest.mark.exhaustive
def test_memory_holds_the_last_states_and_a_window_of_them_is_a_sliding_window():
    layer, parameters, inputs = layer_and_inputs(4)
    whole = TransformerXL(6, heads=2, memory_len=12, head_dim=4)
    full, _ = jax.jit(lambda p, x: whole(p, x, mask=masks.SlidingWindow(4, 0)))(parameters, inputs)
    run = jax.jit(lambda p, x, memory: layer(p, x, memory, mask=masks.SlidingWindow(4, 0)))
    memory, parts = None, []
    for start in range(0, 12, 3):
        out, memory = run(parameters, inputs[:, start : start + 3], memory)
        parts.append(out)
    close(jnp.concatenate(parts, 1), full, 1e-5)
    np.testing.assert_array_equal(memory.states, inputs[:, -4:])


def test_a_mask_leaves_what_memory_does_not_hold_yet_out():
    layer, parameters, inputs = layer_and_inputs(4)
    plain, _ = jax.jit(layer)(parameters, inputs[:, :3])
    masked, _ = jax.jit(lambda p, x: layer(p, x, mask=masks.SlidingWindow(9, 9)))(parameters, inputs[:, :3])
    close(masked, plain, 1e-6)


def test_no_gradient_into_memory_and_none_from_the_future():
    layer, parameters, inputs = layer_and_inputs(4)

    def second(first, rest):
        _, memory = layer(parameters, first)
        return layer(parameters, rest, memory)[0]

    graded = jax.jit(jax.grad(lambda *parts: jnp.sin(second(*parts)).sum(), (0, 1)))
    gradient = graded(inputs[:, :4], inputs[:, 4:8])
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.any(gradient[1])
    # The memory is a constant both when it is made and when it is read.
    kept = jax.jit(jax.grad(lambda first: layer(parameters, first)[1].states.sum()))(inputs[:, :4])
    np.testing.assert_array_equal(kept, 0)
    _, memory = jax.jit(layer)(parameters, inputs[:, :4])
    read = jax.jit(jax.grad(lambda states: layer(parameters, inputs[:, 4:8], memory._replace(states=states))[0].sum()))
    np.testing.assert_array_equal(read(memory.states), 0)
    jacobian = jax.jit(jax.jacobian(lambda x: layer(parameters, x)[0]))(inputs[0, :5])
    jacobian = np.asarray(jacobian)
    for i in range(5):
        assert np.any(jacobian[i, :, : i + 1])
        np.testing.assert_array_equal(jacobian[i, :, i + 1 :], 0)


def test_as_a_module():
    layer, _, inputs = layer_and_inputs(4)
    _, memory = jax.jit(layer)(layer.init(jax.random.key(1)), inputs[:, :3])
    check_layer(layer, inputs[:, 3:6], memory)


def test_bad_input_is_named():
    query, key, value, kernel, u, v = arrays()
    with pytest.raises(ValueError, match="`position_kernel` must have an even position_dim"):
        call(query, key, value, kernel[:5], u, v)
    with pytest.raises(ValueError, match=r"`content_bias` must have shape \[q_heads, dim\] with q_heads = 2"):
        call(query, key, value, kernel, u[:1], v)
    with pytest.raises(ValueError, match="`query_positions` are needed for more queries than keys"):
        call(key, query, query, kernel, u, v)
    with pytest.raises(ValueError, match=r"`query_positions` must have shape \[3\], .* element of `query`; got \(4,\)"):
        call(query, key, value, kernel, u, v, query_positions=np.arange(4))
    with pytest.raises(ValueError, match="`similarity` must be left out: content and distance are its own"):
        call(query, key, value, kernel, u, v, similarity=similarities.Dot())
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads`"):
        TransformerXL(6, heads=4, memory_len=3)
    with pytest.raises(ValueError, match="`features` must be even"):
        TransformerXL(5, heads=5, memory_len=3)
    with pytest.raises(ValueError, match="`memory_len` must be a positive int; got 0"):
        TransformerXL(6, heads=2, memory_len=0)
    layer, parameters, inputs = layer_and_inputs(4)
    _, memory = layer(parameters, inputs)
    with pytest.raises(ValueError, match=r"`memory` must have shape .* with memory_len = 5"):
        TransformerXL(6, heads=2, memory_len=5, head_dim=4)(parameters, inputs, memory)
