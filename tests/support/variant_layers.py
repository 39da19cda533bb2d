"""What every test of a layer checks: nnx and linen agree with the function, and every parameter has a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jattn.linen
import jattn.nnx
from jattn.layers import Layer


def check_layer(layer: Layer, *inputs: Any, seed: int = 0, parameters: Any = None, **options: Any) -> Any:
    """Run `layer` as a function, in nnx and in linen, jitted, with equal parameters (by default random); its output.

    Every parameter must get a gradient that is finite and not zero everywhere.
    """
    # Random values: what starts as zeros would hide what it multiplies.
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
    if parameters is None:
        parameters = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32), shapes)
    definition, state = nnx.split(nnx.eval_shape(lambda: jattn.nnx.Layer(layer, rngs=nnx.Rngs(0))))
    linen = jattn.linen.Layer(layer)
    declared = jax.eval_shape(lambda: linen.init(jax.random.key(0), *inputs, **options))["params"]
    assert jax.tree.map(jnp.shape, parameters) == jax.tree.map(jnp.shape, dict(declared))

    def loss(parameters):
        out = layer(parameters, *inputs, **options)
        floats = [leaf for leaf in jax.tree.leaves(out) if _is_float(leaf)]
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in floats), out

    @jax.jit
    def everything(parameters):
        held = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(parameters))
        in_nnx = nnx.merge(definition, held)(*inputs, **options)
        in_linen = linen.apply({"params": parameters}, *inputs, **options)
        gradients, want = jax.grad(loss, has_aux=True)(parameters)
        return want, in_nnx, in_linen, gradients

    _check_float64(layer, parameters, inputs, options)
    want, in_nnx, in_linen, gradients = everything(parameters)
    _equal(in_nnx, want)
    _equal(in_linen, want)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient != 0), f"{path} has no gradient"
    return want


def _check_float64(layer: Layer, parameters: Any, inputs: Any, options: Any) -> None:
    """Of float64 the layer makes float64; traced alone, which finds loops whose dtypes do not fit."""

    def wide(leaf: Any) -> Any:
        return leaf.astype(jnp.float64) if hasattr(leaf, "dtype") and _is_float(leaf) else leaf

    with jax.enable_x64(True):
        given = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, (inputs, options))
        (inputs, options), parameters = jax.tree.map(wide, (given, parameters))
        out = jax.eval_shape(lambda parameters: layer(parameters, *inputs, **options), parameters)
    assert {leaf.dtype for leaf in jax.tree.leaves(out) if _is_float(leaf)} == {np.dtype("float64")}


def _equal(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
