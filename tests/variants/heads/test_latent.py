"""Multi-head latent attention: its definition in NumPy, and equal decoding from latents."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import rows

import jattn.linen
import jattn.nnx
from jattn import masks, normalizers, positions, scores
from jattn.layers import caches
from jattn.variants.heads import LatentAttention

FEATURES, LENGTH, SIZES = 10, 6, dict(kv_rank=7, head_dim=5, rope_dim=4, v_dim=3)
LAYERS = {
    "DeepSeek": LatentAttention(FEATURES, 2, **SIZES, q_rank=6, use_bias=True, implementation="reference"),
    "pieces": LatentAttention(
        FEATURES,
        4,
        **SIZES,
        scale=0.7,
        rotary=functools.partial(positions.rotary, base=100.0),
        mask=masks.Causal() & (masks.SlidingWindow(1, 0) | masks.Sinks(1)),
        scores=scores.ALiBi.standard(4),
        normalizer=normalizers.Softmax(np.array([0.5, -1, 2, 0], np.float32)),
        cache=caches.Rolling(3, sinks=1),
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def no_rank_is_promoted():
    with jax.numpy_rank_promotion("raise"):
        yield


def random(*shape) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def parameters_of(layer) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda one: one + 0.3 * rng.normal(size=one.shape).astype(np.float32), layer.init(jax.random.key(0))
    )


def definition(parameters, x):
    """Of the layer `DeepSeek` above, in float64, without a cache."""
    p = jax.tree.map(lambda one: np.asarray(one, np.float64), parameters)
    x = np.asarray(x, np.float64)

    def norm(values, scale):
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * scale

    def turn(values):  # [length, heads, 4]
        angles = np.arange(len(values))[:, None, None] * np.array([1.0, 0.01])
        pairs = (values[..., 0::2] + 1j * values[..., 1::2]) * np.exp(1j * angles)
        return np.stack([pairs.real, pairs.imag], -1).reshape(values.shape)

    down = norm(x @ p["query_down"]["kernel"] + p["query_down"]["bias"], p["query_norm"]["scale"])
    query = np.einsum("lr,rhd->lhd", down, p["query"]["kernel"])
    query = np.concatenate([query[..., :5], turn(query[..., 5:])], -1)
    both = x @ p["latent"]["kernel"] + p["latent"]["bias"]
    latent, shared = norm(both[:, :7], p["latent_norm"]["scale"]), turn(both[:, None, 7:])
    key = np.einsum("lc,chd->lhd", latent, p["key"]["kernel"])
    key = np.concatenate([key, shared.repeat(2, 1)], -1)
    value = np.einsum("lc,chd->lhd", latent, p["value"]["kernel"])
    logits = np.einsum("qhd,khd->hqk", query, key) / 3.0
    weights = np.where(np.tri(len(x), dtype=bool), np.exp(logits), 0)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd,hdf->qf", weights, value, p["out"]["kernel"]) + p["out"]["bias"]


def test_the_definition():
    layer, x = LAYERS["DeepSeek"], random(2, LENGTH, FEATURES)
    parameters = parameters_of(layer)
    got = jax.jit(layer.__call__)(parameters, x)
    np.testing.assert_allclose(got, [definition(parameters, one) for one in x], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", rows(LAYERS, ["DeepSeek"]))
def test_prefill_and_steps_are_the_whole(name):
    """Token by token, in two chunks, and in the gradients of prompt and steps."""
    layer, x = LAYERS[name], random(2, LENGTH, FEATURES)
    parameters = parameters_of(layer)
    whole, prefill = jax.jit(layer.__call__)(parameters, x), jax.jit(layer.prefill)
    empty = layer.initial_state(parameters, (2,), length=8 if layer.cache is None else None)

    def step(state, token):
        out, state = layer.step(parameters, token, state)
        return state, out

    _, steps = jax.jit(lambda x: jax.lax.scan(step, empty, x))(np.moveaxis(x, 1, 0))
    np.testing.assert_allclose(np.moveaxis(steps, 0, 1), whole, rtol=1e-5, atol=1e-5)
    for split in (1, 3) if name == "DeepSeek" else (3,):
        head, state = prefill(parameters, x[:, :split], empty)
        tail, state = prefill(parameters, x[:, split:], state)
        np.testing.assert_allclose(np.concatenate([head, tail], 1), whole, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(state.lengths, [LENGTH] * 2)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(decoding, parameters, x):
        def loss(parameters, x):
            if not decoding:
                return jnp.sin(layer(parameters, x)).sum()
            out, state = layer.prefill(parameters, x[:, :4], empty, first=True)
            outs = [out]
            for t in (4, 5):
                out, state = layer.step(parameters, x[:, t], state)
                outs.append(out[:, None])
            return jnp.sin(jnp.concatenate(outs, 1)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(parameters, x)

    found, wanted = gradients(True, parameters, x), gradients(False, parameters, x)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.exhaustive
def test_prompts_of_different_lengths():
    layer, x = LAYERS["DeepSeek"], random(2, LENGTH, FEATURES)
    parameters = parameters_of(layer)
    whole = jax.jit(layer.__call__)(parameters, x)
    valid = np.arange(4) >= np.array([[0], [3]])
    padded = np.where(valid[..., None], np.stack([x[0, :4], np.roll(x[1, :4], 3, 0)]), np.nan)
    empty = layer.initial_state(parameters, (2,), length=8)
    out, state = jax.jit(layer.prefill)(parameters, padded, empty, valid=valid)
    np.testing.assert_allclose(out[0], whole[0, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[1, 3], whole[1, 0], rtol=1e-5, atol=1e-5)
    step, state = jax.jit(layer.step)(parameters, np.stack([x[0, 4], x[1, 1]]), state)
    np.testing.assert_allclose(step, [whole[0, 4], whole[1, 1]], rtol=1e-5, atol=1e-5)


def test_in_nnx_and_linen():
    layer, x = LAYERS["DeepSeek"], random(2, LENGTH, FEATURES)
    module = jattn.nnx.Layer(layer, rngs=nnx.Rngs(0))
    parameters = module.arrays()
    empty = module.initial_state((2,), length=8)
    want, state = jax.jit(layer.prefill)(parameters, x, empty)
    got, left = nnx.jit(lambda module, x: module.prefill(x, empty))(module, x)
    skin = jattn.linen.Layer(layer)
    also = jax.jit(skin.apply)({"params": parameters}, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(also, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(left.keys, state.keys, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_rank": 0}, "`kv_rank` must be a positive int"),
        ({"q_rank": 0}, "`q_rank` must be a positive int"),
        ({"rope_dim": 3}, "`rope_dim` must be even, as features are rotated in pairs; got 3"),
        ({"scale": "1"}, "`scale` must be a number"),
        ({"rotary": True}, "`rotary` must be a function"),
        ({"cache": caches.Contiguous}, "`cache` must be one of `jattn.layers.caches`"),
        ({"mask": 3}, "`mask` must be a mask piece"),
    ],
)
def test_bad_choices_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LatentAttention(FEATURES, 2, **{**SIZES, **changes})


def test_bad_calls_are_named():
    layer = LAYERS["DeepSeek"]
    parameters, x = parameters_of(layer), random(2, LENGTH, FEATURES)
    state, other = layer.initial_state(parameters, (2,), length=8), caches.Contiguous(8).create((2,), 2, 11)
    _, later = layer.prefill(parameters, x, state)
    for call, message in (
        (lambda: layer(parameters, x[..., :3]), "`inputs` must have shape .* with features = 10"),
        (lambda: layer(parameters, x, positions=np.arange(3)), r"`positions` must have shape \[6\]"),
        (
            lambda: layer.prefill(parameters, x, other),
            r"`state` .* keys \[..., 1, 11\] without values; got keys \(2, 8",
        ),
        (lambda: layer.prefill(parameters, x), "`state` must be what `initial_state"),
        (
            lambda: layer.step(parameters, x[0, 0], state),
            r"`inputs` must have the batch axes \(2,\) of the state; got \(\)",
        ),
        (lambda: layer.prefill(parameters, x, state, first=1), "`first` must be True or False"),
        (lambda: layer.prefill(parameters, x, later, first=True), "`first` is for a state without tokens"),
        (lambda: layer.prefill(parameters, x, later), "`inputs` must end within the 8 places of the cache"),
        (lambda: layer.initial_state(parameters), "`length` must be the number of places"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
