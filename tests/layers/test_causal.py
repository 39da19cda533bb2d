"""Causal attention with a cache equals multi-head attention; the contract of generative layers is tested elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generative_layers import LAYERS, random_parameters
from tiers import rows

from jattn import masks
from jattn.layers import CausalAttention, multi_head

NAMES = [name for name in LAYERS if type(LAYERS[name]) is CausalAttention]
LAYER = CausalAttention(8, 2, max_len=6)


@pytest.mark.parametrize("name", rows(NAMES, ["attention, grouped, a window"]))
def test_the_call_is_multi_head_attention(name):
    layer = LAYERS[name]
    parameters = random_parameters(layer)
    inputs = np.random.default_rng(0).normal(size=(2, 7, layer.features)).astype(np.float32)
    mask = masks.Causal() if layer.window is None else masks.SlidingWindow(layer.window - 1, 0)
    ids = np.array([0, 0, 1, 1, 1, 4, 4])
    for given, segments in ((mask, None), (mask & masks.SameSegment(ids), ids)):

        @jax.jit
        def both(parameters, inputs, given=given, segments=segments):
            want = multi_head(parameters, inputs, mask=given, rotary=layer.rotary)
            return layer(parameters, inputs, segment_ids=segments), want

        np.testing.assert_allclose(*both(parameters, inputs), rtol=1e-5, atol=1e-5)


def test_a_cache_that_is_full():
    """Refused where the position is known; NaN, not the wrong keys, where it is traced."""
    parameters, inputs = LAYER.init(jax.random.key(0)), jnp.ones((2, 7, 8))
    with pytest.raises(ValueError, match=r"`inputs` must end before position `max_len` = 6.*they end at 7"):
        LAYER(parameters, inputs)
    _, state = jax.jit(LAYER.prefill)(parameters, inputs[:, :6])
    with pytest.raises(ValueError, match=r"`max_len` = 6.*they end at 7"):
        LAYER.step(parameters, inputs[:, 0], state)
    out, _ = jax.jit(LAYER.step)(parameters, inputs[:, 0], state)
    assert np.isnan(out).all()


def test_the_window_bounds_what_nan_reaches():
    layer = CausalAttention(8, 2, max_len=9, window=3)
    parameters = layer.init(jax.random.key(0))
    inputs = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    inputs[2] = np.nan
    whole, step = jax.jit(layer.__call__)(parameters, inputs), jax.jit(layer.step)
    np.testing.assert_array_equal(np.isnan(whole).all(-1), [0, 0, 1, 1, 1, 0, 0, 0])
    state, steps = layer.initial_state(parameters), []
    for token in inputs:
        out, state = step(parameters, token, state)
        steps.append(out)
    np.testing.assert_allclose(np.stack(steps), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 3}, "`features` must be a multiple of `heads`, unless `head_dim` is given"),
        ({"heads": 4, "kv_heads": 3}, "`heads` must be a multiple of `kv_heads`"),
        ({"heads": 8}, "`head_dim` must be even"),
        ({"heads": 2, "max_len": 0}, "`max_len` must be a positive int"),
        ({"heads": 2, "window": 0}, "`window` must be a positive int"),
        ({"heads": 2, "rotary": "half"}, "`rotary` must be True or False"),
    ],
)
def test_bad_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        CausalAttention(8, **{"max_len": 6, **sizes})


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", ["attention, grouped, a window", pytest.param("FoX, grouped", marks=pytest.mark.exhaustive)]
)
def test_segments_go_on_from_a_state(name):
    """The first segment of later tokens is the one before; the last one goes on, alone."""
    layer = LAYERS[name]
    parameters, inputs = random_parameters(layer), jax.random.normal(jax.random.key(0), (2, 8, layer.features))
    ids = np.array([0, 0, 0, 0, 1, 1, 2])

    @jax.jit
    def run(parameters, inputs):
        whole, want = layer.prefill(parameters, inputs[:, :7], segment_ids=ids)
        head, state = layer.prefill(parameters, inputs[:, :3])
        tail, state = layer.prefill(parameters, inputs[:, 3:7], state, segment_ids=ids[3:])
        nexts = [layer.step(parameters, inputs[:, 7], one) for one in (want, state)]
        alone, _ = layer.prefill(parameters, inputs[:, 6:])
        return (jnp.concatenate([head, tail], 1), whole), nexts, (nexts[0][0], alone[:, 1])

    outs, nexts, last = run(parameters, inputs)
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*last, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*(out for out, _ in nexts), rtol=1e-5, atol=1e-5)
    assert [state.lengths.tolist() for _, state in nexts] == [[2, 2], [2, 2]]
