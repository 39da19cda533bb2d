"""The multi-head layers: feature maps, decoding, parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants.kernelized import Based, CosFormer, Hedgehog, LinearTransformer, Performer

LAYERS = {
    "linear": LinearTransformer(6, 2),
    "performer": Performer(6, 2, random_features=5, kind="hyperbolic"),
    "cosformer": CosFormer(6, 2, max_len=16),
    "hedgehog": Hedgehog(6, 2),
    "based": Based(6, 2, qk_dim=2),
}


def dense(layer, parameters, inputs):
    """Σ_j φ(q_i)·φ(k_j) v_j over Σ_j φ(q_i)·φ(k_j), j ≤ i, with the layer's own map: the maps have their own tests."""
    project = lambda name: np.einsum("tf,fhd->thd", inputs, parameters[name]["kernel"])  # noqa: E731
    features, at = layer.feature_map(parameters), np.arange(len(inputs))
    query, key = (jnp.asarray(project(name)) for name in ("query", "key"))
    made, keys = (np.asarray(x, np.float64) for x in (features.query(query, at), features.key(key, at)))
    shift = features.log_scale(key)
    if shift is not None:
        keys = keys * np.exp(np.asarray(shift))[..., None]
    weights = np.tril(np.einsum("ihf,jhf->hij", made, keys))
    total = weights.sum(-1, keepdims=True)  # 0 where a ReLU left no feature: the output is 0
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    out = np.einsum("hij,jhv->ihv", weights, project("value"))
    return np.einsum("ihv,hvf->if", out, parameters["out"]["kernel"])


@pytest.mark.parametrize("name", LAYERS)
def test_is_its_sum_and_a_module(name):
    """How it decodes is tested with all layers that generate."""
    layer = LAYERS[name]
    parameters, inputs = layer.init(jax.random.key(0)), normal(1, (7, 6))[0]
    out = check_layer(layer, jnp.asarray(inputs), parameters=parameters)
    close(out, dense(layer, parameters, inputs), 2e-5)


def test_both_directions_cross_and_padding():
    layer = LinearTransformer(6, 2, causal=False)
    parameters = layer.init(jax.random.key(0))
    inputs, others = normal(3, (2, 5, 6), (2, 7, 6))
    mask = np.arange(7) < np.array([[7], [4]])
    run = jax.jit(layer.__call__)
    close(run(parameters, inputs, others, mask=mask)[1], run(parameters, inputs[1], others[1, :4]), 1e-5)
    with pytest.raises(ValueError, match="Decoding needs a layer with `causal=True`"):
        layer.step(parameters, inputs[:, 0], layer.initial_state(parameters, (2,)))


def test_random_features_are_redrawn_by_a_key():
    layer = Performer(6, 2)
    parameters, inputs = layer.init(jax.random.key(0)), normal(4, (5, 6))[0]
    run = jax.jit(lambda redraw: layer(parameters, inputs, redraw=redraw))
    one, again, other = (run(key) for key in (None, None, jax.random.key(9)))
    close(one, again, 0)
    assert np.abs(one - other).max() > 1e-3


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads`"):
        LinearTransformer(6, 4)
    with pytest.raises(ValueError, match="`heads` must be a positive int"):
        LinearTransformer(6, 0)
    with pytest.raises(ValueError, match="`kind` must be one of"):
        Performer(6, 2, kind="cosine")
    layer = CosFormer(6, 2, max_len=4)
    parameters = layer.init(jax.random.key(0))
    with pytest.raises(ValueError, match="Give a larger"):
        layer(parameters, jnp.ones((6, 6)))
    _, state = jax.jit(layer.prefill)(parameters, jnp.ones((5, 6)))
    with pytest.raises(ValueError, match="Give a larger"):
        layer.step(parameters, jnp.ones(6), state)
    assert np.isnan(jax.jit(layer.step)(parameters, jnp.ones(6), state)[0]).all()
    with pytest.raises(ValueError, match=r"`inputs` must have shape .* with features = 6"):
        layer(parameters, jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="`key_inputs` need `causal=False`"):
        layer(parameters, jnp.ones((3, 6)), jnp.ones((3, 6)))
    for unknown in ("positions", "initial_state", "causal"):
        with pytest.raises(TypeError, match=rf"\.prefill\(\) got an unexpected keyword argument '{unknown}'"):
            layer.prefill(parameters, jnp.ones((3, 6)), **{unknown: None})


@pytest.mark.parametrize("name", LAYERS)
def test_only_what_is_random_is_drawn_again(name):
    layer = LAYERS[name]
    parameters, inputs = layer.init(jax.random.key(0)), jnp.ones((2, 5, 6))
    with pytest.raises(ValueError, match="`redraw`"):
        layer(parameters, inputs, redraw=3)
    if name != "performer":
        with pytest.raises(ValueError, match="`redraw` is for random features"):
            layer(parameters, inputs, redraw=jax.random.key(1))


@pytest.mark.parametrize("name", rows(LAYERS, ["performer"]))
def test_no_tokens_of_packed_sequences(name):
    layer = LAYERS[name]
    run = jax.jit(lambda parameters, inputs: layer.prefill(parameters, inputs, segment_ids=np.zeros(0, int)))
    out, state = run(layer.init(jax.random.key(0)), jnp.ones((2, 0, 6)))
    assert out.shape == (2, 0, 6) and state.position == 0
