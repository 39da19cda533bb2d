"""Multi-token attention equals its sums, block by block, and does not see the future."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from variant_layers import check_layer

import jattn
from jattn import masks, similarities
from jattn.layers import multi_head
from jattn.variants.heads import MultiToken, multi_token

MODULE = importlib.import_module("jattn.variants.heads.multi_token")
CAUSAL = masks.Causal()


def test_a_window_of_one_pair_is_attention():
    q, k, v = normal(1, (2, 6, 4, 3), (2, 9, 2, 3), (2, 9, 2, 2))
    filters = np.zeros((4, 3, 5), np.float32)
    filters[:, 0, 2] = 1
    pieces = {"similarity": similarities.Cosine(0.5), "mask": masks.Lengths(np.array([9, 4]))}
    mixed = jax.jit(lambda q, k, v: multi_token(q, k, v, filters, **pieces))(q, k, v)
    close(mixed, jax.jit(lambda q, k, v: jattn.attention(q, k, v, **pieces))(q, k, v), 1e-5)


def test_the_future_is_not_seen():
    q, k, v, filters = normal(2, (6, 2, 3), (6, 2, 3), (6, 2, 2), (2, 3, 5))
    jacobians = jax.jit(jax.jacobian(lambda *qkv: multi_token(*qkv, filters, mask=CAUSAL)[3], (0, 1, 2)))
    seen, *gradients = map(np.asarray, jacobians(q, k, v))
    for gradient in gradients:
        assert not gradient[..., 4:, :, :].any() and gradient[..., :4, :, :].any()
    assert not seen[..., 4:, :, :].any() and not seen[..., :1, :, :].any()
    assert seen[..., 1, :, :].any()


@pytest.mark.exhaustive
def test_memory_is_not_quadratic():
    def temporaries(length):
        arrays = [jax.ShapeDtypeStruct((length, 1, 4), jnp.float32)] * 3
        loss = lambda q, k, v: multi_token(q, k, v, jnp.ones((1, 2, 3)), mask=CAUSAL).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.5 * temporaries(2048)


def test_what_cannot_be():
    q = jnp.ones((3, 4, 2))
    with pytest.raises(ValueError, match=r"`filters` must have shape \[heads, queries, keys\] with heads = 4"):
        multi_token(q, q, q, jnp.ones((2, 2, 3)))
    with pytest.raises(ValueError, match=r"`before` of shape \(1, 2, 2\) must mix groups \* size = 4 heads"):
        multi_token(q, q, q, jnp.ones((4, 2, 3)), before=jnp.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="`filters` must span"):
        multi_token(q, q, q, jnp.ones((4, 0, 3)))


def test_the_layer_is_multi_head_attention_at_first():
    layer = MultiToken(8, heads=4, queries=2, keys=3, group=2)
    x = jnp.asarray(normal(6, (2, 5, 8))[0])
    parameters = layer.init(jax.random.key(0))
    plain = {name: parameters[name] for name in ("query", "key", "value", "out")}
    run, attend = jax.jit(layer.__call__), jax.jit(multi_head)
    close(run(parameters, x, mask=CAUSAL), attend(plain, x, mask=CAUSAL), 1e-5)
    check_layer(layer, x, mask=CAUSAL)


def test_the_layer_projects_to_the_function():
    layer = MultiToken(6, heads=2, queries=2, keys=3)
    x, filters = normal(7, (5, 6), (2, 2, 3))
    parameters = layer.init(jax.random.key(0)) | {"filters": jnp.asarray(filters)}
    q, k, v = (np.einsum("lf,fhd->lhd", x, parameters[name]["kernel"]) for name in ("query", "key", "value"))
    heads = jax.jit(multi_token)(q, k, v, filters, mask=CAUSAL)
    close(
        jax.jit(layer.__call__)(parameters, x, mask=CAUSAL),
        np.einsum("qhd,hdf->qf", heads, parameters["out"]["kernel"]),
        1e-5,
    )
    for sizes, message in (
        (dict(features=6, heads=4), "`features` must be a multiple of `heads`; got features 6 and heads 4"),
        (dict(features=6, heads=3, group=2), "`heads` must be a multiple of `group`; got heads 3 and group 2"),
        (dict(features=6, heads=3, keys=0), "`keys` must be a positive int; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiToken(**sizes)
